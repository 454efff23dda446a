// Text for machines, which people copy.
import { html } from "../lib.js";
import { CopyButton } from "./button.js";

/** A block of code; `label` says what it is, `language` is shown when it helps. Long lines scroll. */
export const CodeBlock = ({ text, label = "Code", language }) => html`
  <figure class="code">
    <figcaption>
      <span>${label}</span>${language && html`<span class="muted">${language}</span>`}
      <${CopyButton} text=${text} label=${`Copy: ${label}`} />
    </figcaption>
    <pre tabindex="0" role="region" aria-label=${label}><code>${text}</code></pre>
  </figure>
`;
