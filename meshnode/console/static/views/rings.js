// Where nodes stand on the picture of a mesh: on rings around the centre. Plain geometry: the same number of nodes on the
// same width always gives the same places, so that nothing moves but when somebody comes or goes.

/** More nodes than this are a table only. */
export const MOST_NODES = 60;
const SAMPLES = 180;

// How close nodes may stand, from ample to marks without names: `step` along a ring, `gap` from one ring to the next,
// the half axes of the inner ring, room at the edge, room that a note needs below the last node.
const DENSITIES = [
  { name: "ample", step: 104, gap: 0, x: 100, y: 150, edge: 56, foot: 60, most: 1 },
  { name: "named", step: 84, gap: 70, x: 112, y: 108, edge: 46, foot: 56, most: 4 },
  { name: "marks", step: 45, gap: 46, x: 64, y: 84, edge: 26, foot: 32, most: 6 },
];
/** Room for the name of a split outside its band. */
const LABEL = 32;

/** Angles of `count` points at equal distances along an ellipse, the first `offset` steps after its top. */
function along(count, a, b, offset) {
  const at = (i) => -Math.PI / 2 + (2 * Math.PI * i) / SAMPLES;
  const lengths = [0];
  for (let i = 1; i <= SAMPLES; i += 1) {
    const [from, to] = [at(i - 1), at(i)];
    lengths.push(lengths[i - 1] + Math.hypot(a * (Math.cos(to) - Math.cos(from)), b * (Math.sin(to) - Math.sin(from))));
  }
  return Array.from({ length: count }, (_, k) => {
    const length = ((((k + offset) / count) % 1) + 1) % 1 * lengths[SAMPLES];
    const i = lengths.findIndex((each) => each > length) - 1;
    return at(i + (length - lengths[i]) / (lengths[i + 1] - lengths[i]));
  });
}

const girth = (a, b) => Math.PI * (3 * (a + b) - Math.sqrt((3 * a + b) * (a + 3 * b)));

/** The half axes of that many rings on a picture of that width, from the inner one; null where they are too close. */
function axes(rings, width, density, extra) {
  const widest = width / 2 - density.edge;
  if (rings === 1) {
    const x = Math.min(widest, 330);
    return x < density.x - 20 ? null : [[x, x < 200 ? density.y + 60 : density.y]];
  }
  const gap = Math.min((widest - density.x) / (rings - 1), density.gap * 1.35);
  if (gap < density.gap * 0.85) return null;
  return Array.from({ length: rings }, (_, k) => [
    widest - (rings - 1 - k) * gap, density.y + k * density.gap + (k ? extra : 0),
  ]);
}

/**
 * Where `count` nodes stand on a picture of that width: {width, height, x, y (of the centre), density, rings: [[half
 * axes]], points: [{x, y, angle, ring, slot, of, a, b}]}, or null where they do not find room. `slot` counts the `of`
 * nodes of a ring. The first `middle` nodes stand in a row around the top of the inner ring.
 */
export function layout(count, width, middle = 0) {
  if (count > MOST_NODES) return null;
  const extra = middle ? LABEL : 0;
  for (const density of DENSITIES)
    for (let number = 1; number <= density.most; number += 1) {
      const rings = axes(number, width, density, extra);
      const rooms = rings?.map(([a, b]) => Math.floor(girth(a, b) / density.step)) ?? [];
      let roomLeft = rooms.reduce((sum, each) => sum + each, 0);
      if (roomLeft < count || !rings) continue;
      let left = count;
      const [cx, tallest] = [width / 2, count ? rings.at(-1)[1] : 40];
      const cy = tallest + 28 + (number === 1 ? extra : 0);
      const points = rings.flatMap(([a, b], ring) => {
        const fair = Math.min(rooms[ring], Math.round((left * rooms[ring]) / roomLeft));
        const here = Math.max(fair, left - roomLeft + rooms[ring]);
        left -= here;
        roomLeft -= rooms[ring];
        const offset = ring === 0 && middle ? -(Math.min(middle, here) - 1) / 2 : ring % 2 ? 0.5 : 0;
        return along(here, a, b, offset).map((angle, slot) => ({
          x: Math.round(cx + a * Math.cos(angle)), y: Math.round(cy + b * Math.sin(angle)),
          angle, ring, slot, of: here, a, b,
        }));
      });
      return { width, height: cy + tallest + density.foot, x: cx, y: cy, density: density.name, rings, points };
    }
  return null;
}

/** A stretch of a ring around (cx, cy), from one angle to another, as SVG path data. */
export function arc({ a, b }, from, to, cx, cy) {
  const steps = Math.max(2, Math.ceil((to - from) / 0.06));
  const points = Array.from({ length: steps + 1 }, (_, i) => {
    const angle = from + ((to - from) * i) / steps;
    return `${(cx + a * Math.cos(angle)).toFixed(1)} ${(cy + b * Math.sin(angle)).toFixed(1)}`;
  });
  return `M${points.join("L")}`;
}
