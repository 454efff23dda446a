// How far requests may go that do not say it themselves, with what that means.

import { html, useSignal } from "../lib.js";
import { member } from "../store.js";
import { Button } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { Notice } from "../parts/notice.js";
import { PLAINLY, RADII, usual } from "../radius.js";
import { Faults, submit } from "./acts.js";

/** The choice. It holds until the node is started anew, when its setting counts again. */
export function Reach({ acts }) {
  const wish = useSignal("");
  if (!member("trust").value) return null;
  const now = usual.value;
  const chosen = wish.value || now;
  const change = async () => {
    const said = `Requests go as far as: ${RADII[chosen][0]}`;
    if (await acts.post("radius", "Nothing has changed", "/api/radius", { radius: chosen }, said)) wish.value = "";
  };
  return html`<${Card} title="How far requests may go">
    <p class="muted">
      Of requests that do not say it themselves (<code>x-meshnode-radius</code>). It holds until the node is started anew;
      the setting <code>radius</code> counts then.
    </p>
    <form onSubmit=${submit(change)}>
      <div role="radiogroup" aria-label="How far requests may go" class="radii">
        ${Object.entries(RADII).map(([radius, [name, words]]) => html`
          <label key=${radius} class="radius">
            <input type="radio" name="radius" value=${radius} checked=${radius === chosen} onChange=${() => (wish.value = radius)} />
            <span><b>${name}</b>${radius === now && html` <small class="muted">now</small>`}<span class="muted">${words}</span></span>
          </label>
        `)}
      </div>
      ${chosen === "public" && html`<${Notice} kind="warn" title="What a stranger sees">${PLAINLY}<//>`}
      <${Faults} acts=${acts} of="radius" />
      <div><${Button} type="submit" kind="primary" disabled=${chosen === now} busy=${acts.busy("radius")}>Let them go so far<//></div>
    </form>
  <//>`;
}
