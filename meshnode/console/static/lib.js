// The one place where the libraries are imported: views and parts take Preact, htm and signals from here.
import { Component, Fragment, createRef, h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { Component, Fragment, createRef, h, render };
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
export {
  batch, computed, effect, signal, useComputed, useSignal, useSignalEffect,
} from "./vendor/signals.js";

/** Markup as a tagged template: html`<p class=${name}>${text}</p>`. Text is always escaped. */
export const html = htm.bind(h);
