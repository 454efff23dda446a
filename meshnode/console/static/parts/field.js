// Things to fill in. Each input takes what any input takes (name, placeholder, required, ...); onInput and onChange
// get the value, not the event.
import { h, html, useRef } from "../lib.js";

let made = 0;

/** A label over one input, with a hint and what is wrong with it. The child is one of the inputs below. */
export const Field = ({ label, hint, error, children }) => {
  const id = useRef(null);
  id.current ??= `field-${(made += 1)}`;
  const child = [children].flat()[0];
  const told = [hint && `${id.current}-hint`, error && `${id.current}-error`].filter(Boolean).join(" ") || undefined;
  return html`
    <div class="field">
      <label for=${id.current}>${label}</label>
      ${h(child.type, { ...child.props, id: id.current, "aria-describedby": told, "aria-invalid": error ? "true" : undefined })}
      ${hint && html`<p id=${`${id.current}-hint`} class="field-hint">${hint}</p>`}
      ${error && html`<p id=${`${id.current}-error`} class="field-error" role="alert">${error}</p>`}
    </div>
  `;
};

const told = (act, read = (input) => input.value) => act && ((event) => act(read(event.currentTarget)));

/** One line of text. */
export const TextInput = ({ type = "text", onInput, onChange, ...rest }) => html`
  <input class="input" type=${type} autocomplete="off" spellcheck=${false} onInput=${told(onInput)} onChange=${told(onChange)} ...${rest} />
`;

/** A number, or null when nothing is there. */
export const NumberInput = ({ onInput, onChange, value, ...rest }) => {
  const read = (input) => (input.value === "" || Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber);
  return html`<input class="input number" type="number" value=${value ?? ""} onInput=${told(onInput, read)} onChange=${told(onChange, read)} ...${rest} />`;
};

/** Several lines of text. */
export const TextArea = ({ rows = 3, onInput, onChange, ...rest }) => html`
  <textarea class="input" rows=${rows} onInput=${told(onInput)} onChange=${told(onChange)} ...${rest}></textarea>
`;

/** One of some: options [{value, label}]. */
export const Select = ({ value, options, onChange, ...rest }) => html`
  <select class="input" value=${value} onChange=${told(onChange)} ...${rest}>
    ${options.map((one) => html`<option key=${one.value} value=${one.value} selected=${one.value === value} disabled=${one.disabled}>${one.label}</option>`)}
  </select>
`;

/** On or off. */
export const Switch = ({ label, checked, onChange, disabled }) => html`
  <label class="switch">
    <input type="checkbox" role="switch" checked=${checked} disabled=${disabled} onChange=${told(onChange, (input) => input.checked)} />
    <span class="switch-track" aria-hidden="true"></span><span>${label}</span>
  </label>
`;
