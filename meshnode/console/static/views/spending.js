// Reserved for what answers cost and earn.
import { html } from "../lib.js";
import { Card } from "../parts/card.js";
import { Empty } from "../parts/notice.js";

export default function Spending() {
  return html`
    <${Card} title="Nothing is spent">
      <${Empty} title="This version gives and takes answers for free.">
        <p>Nodes of a mesh work for each other without keeping accounts: no wallet is needed, and there are no limits to set.</p>
      <//>
    <//>
  `;
}
