// What a person has asked the node for: what still runs, what went wrong, how many are through. And two short forms
// for the forms by which people ask.

import { html, signal, useMemo } from "../lib.js";
import { post } from "../api.js";
import { clean } from "../format.js";
import { announce } from "../parts/announce.js";
import { Button } from "../parts/button.js";
import { Failure } from "../parts/notice.js";

/**
 * `run(key, title, work)` awaits `work()` and gives what it gives; its error stays in `faults` under `title` until it
 * is dismissed or `key` is tried again. `post(key, title, path, body, said)` does so with a call, and then says `said`.
 */
export function useActs() {
  return useMemo(() => {
    const running = signal([]);
    const faults = signal([]);
    const done = signal(0);
    const dismiss = (key) => (faults.value = faults.value.filter((fault) => fault.key !== key));
    const busy = (key) => running.value.includes(key);
    const run = async (key, title, work) => {
      if (busy(key)) return undefined;
      running.value = [...running.value, key];
      dismiss(key);
      try {
        return await work();
      } catch (error) {
        faults.value = [...faults.value, { key, title, error }];
        return undefined;
      } finally {
        running.value = running.value.filter((each) => each !== key);
        done.value += 1;
      }
    };
    const ask = async (path, body, said) => {
      const answer = await post(path, body);
      announce(said);
      return answer;
    };
    return { faults, done, busy, dismiss, run, post: (key, title, ...call) => run(key, title, () => ask(...call)) };
  }, []);
}

/** The errors of `acts` whose key begins with `of`, each with its fix and a way to put it away. */
export const Faults = ({ acts, of = "" }) =>
  acts.faults.value
    .filter(({ key }) => key.startsWith(of))
    .map(
      ({ key, title, error }) => html`
        <div class="fault" key=${key}>
          <${Failure} title=${clean(title)} error=${error} />
          <${Button} label=${`Dismiss: ${clean(title)}`} onClick=${() => acts.dismiss(key)}>Dismiss<//>
        </div>
      `,
    );

/** For `onSubmit`: does `act` instead of leaving the page. */
export const submit = (act) => (event) => {
  event.preventDefault();
  act();
};

/** What an input needs to show and to change a signal, or one member of the object in it. */
export const bound = (held, name) =>
  name
    ? { value: held.value[name], onInput: (value) => (held.value = { ...held.value, [name]: value }) }
    : { value: held.value, onInput: (value) => (held.value = value) };
