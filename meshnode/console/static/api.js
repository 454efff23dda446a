// Calls of the control API and of the model API, both behind this page's own origin, with the token of the page.

/** What the node, or the way to it, answered instead of a result. `fix` may be empty. */
export class ApiError extends Error {
  constructor(status, code, message, fix = "") {
    super(message);
    Object.assign(this, { name: "ApiError", status, code, fix });
  }
}

let token = document.querySelector('meta[name="meshnode-token"]')?.content ?? "";

/** The token is new at each start of the node; the page that it serves now has it. */
export async function renewToken() {
  const page = await fetch("./", { cache: "no-store" });
  const found = new DOMParser().parseFromString(await page.text(), "text/html");
  token = found.querySelector('meta[name="meshnode-token"]')?.content ?? token;
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not JSON: the status has to do
  }
  if (typeof error === "string") error = { message: error };
  const message = error.message || `the node answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(response.status, String(error.code ?? error.type ?? response.status), message, error.fix ?? "");
}

async function call(path, options, again = true) {
  const used = token;
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, "x-meshnode-token": used } });
  } catch (reason) {
    if (reason.name === "AbortError") throw reason;
    throw new ApiError(0, "unreachable", "The node does not answer.", "See whether it still runs.");
  }
  if (response.ok) return response;
  if (again && (response.status === 401 || response.status === 403)) {
    await renewToken().catch(() => {});
    if (token !== used) return call(path, options, false); // another call may have renewed it
  }
  throw await failure(response);
}

const posting = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body ?? {}),
});

/** The JSON of a GET. Throws ApiError. */
export const get = async (path, { signal } = {}) => (await call(path, { signal })).json();

/** The JSON that answers a POST of `body`. Throws ApiError. */
export const post = async (path, body, { signal } = {}) => (await call(path, { ...posting(body), signal })).json();

/** The Response that answers a POST of `body`, for streams; a GET where there is no body. Throws ApiError. */
export const open = (path, body, { signal, headers } = {}) => {
  const options = body === undefined ? {} : posting(body);
  return call(path, { ...options, headers: { ...options.headers, ...headers }, signal });
};
