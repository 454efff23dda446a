// A real table whose headers sort it.
import { Icon } from "../icons.js";
import { html, useState } from "../lib.js";
import { Empty } from "./notice.js";

const compare = (a, b) => {
  if (a == null || b == null) return (a == null) - (b == null);
  return typeof a === "string" ? a.localeCompare(String(b), undefined, { numeric: true }) : a - b;
};

/**
 * columns: [{key, title, render(row), align: "right", sort(row) -> text or number}]; a column with `sort` sorts, the
 * first time from small to large. `empty` stands there instead of no rows. With `onSelect`, what the first column
 * shows is a button that calls it with the row; `selected` is the key of the chosen row. `order`: ["key", 1 or -1].
 */
export const Table = ({ caption, columns, rows, rowKey, empty = "Nothing here.", selected, onSelect, order = [] }) => {
  const [[by, way], setOrder] = useState(order.length ? order : [null, 1]);
  const column = columns.find((one) => one.key === by && one.sort);
  const shown = column ? [...rows].sort((a, b) => way * compare(column.sort(a), column.sort(b))) : rows;
  if (rows.length === 0) return typeof empty === "string" ? html`<${Empty} title=${empty} />` : empty;
  const cell = (row, one, first) =>
    first && onSelect
      ? html`<button type="button" class="pick" aria-pressed=${selected === rowKey(row)} onClick=${() => onSelect(row)}>${one.render(row)}</button>`
      : one.render(row);
  return html`
    <div class="table-frame" role="region" aria-label=${caption} tabindex="0">
      <table>
        <caption class="unseen">${caption}</caption>
        <thead>
          <tr>
            ${columns.map((one) => html`
              <th key=${one.key} scope="col" class=${one.align ?? ""} aria-sort=${one.sort && by === one.key ? (way > 0 ? "ascending" : "descending") : undefined}>
                ${one.sort
                  ? html`<button type="button" class="sort" onClick=${() => setOrder([one.key, by === one.key ? -way : 1])}>
                      ${one.title}<${Icon} name=${by === one.key && way < 0 ? "down" : "up"} size=${12} />
                    </button>`
                  : one.title}
              </th>
            `)}
          </tr>
        </thead>
        <tbody>
          ${shown.map((row) => html`
            <tr key=${rowKey(row)} class=${selected === rowKey(row) ? "selected" : ""}>
              ${columns.map((one, at) => html`<td key=${one.key} class=${one.align ?? ""}>${cell(row, one, at === 0)}</td>`)}
            </tr>
          `)}
        </tbody>
      </table>
    </div>
  `;
};
