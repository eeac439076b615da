// The admin API as the page asks it: JSON, with the token where one is wanted. The token is kept in this tab alone.

const KEPT = "portico-token";

// The API said no; `message` has its words, with all problems.
export class Refusal extends Error {
  constructor(status, answer) {
    const problems = answer?.problems ?? [];
    super([answer?.error ?? `status ${status}`, ...problems].join("\n"));
    this.status = status;
  }
}

export function hasToken() {
  return sessionStorage.getItem(KEPT) !== null;
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
}

let asking = null;

// Asks for the token; whoever else wants it meanwhile waits for the same answer.
function askForToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token");
    const input = document.getElementById("token-value");
    document.getElementById("token-wrong").hidden = !wasWrong;
    input.value = "";
    // Without it there is nothing to see.
    const stay = (event) => event.preventDefault();
    dialog.addEventListener("cancel", stay);
    dialog.addEventListener("close", () => {
      dialog.removeEventListener("cancel", stay);
      sessionStorage.setItem(KEPT, input.value.trim());
      input.value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
    input.focus();
  });
  return asking;
}

// One answer that is yes, as the browser has it.
export async function open(method, path, body, signal) {
  for (;;) {
    if (asking) await asking;
    const token = sessionStorage.getItem(KEPT);
    const headers = {};
    // A header takes no other letters, and a token has none.
    if (token && /^[\x21-\x7e]+$/.test(token)) headers.Authorization = `Bearer ${token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
    });
    if (answer.status === 401) {
      // Somebody else may have been given the right one meanwhile.
      if (sessionStorage.getItem(KEPT) === token) await askForToken(token !== null);
      continue;
    }
    if (!answer.ok) {
      const text = await answer.text();
      let parsed;
      try {
        parsed = JSON.parse(text);
      } catch {
        parsed = { error: text };
      }
      throw new Refusal(answer.status, parsed);
    }
    return answer;
  }
}

export async function get(path, fields = {}, signal = undefined) {
  const given = Object.entries(fields).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const asked = given.length > 0 ? `${path}?${new URLSearchParams(given)}` : path;
  return (await open("GET", asked, undefined, signal)).json();
}

export async function send(method, path, body) {
  return (await open(method, path, body)).json();
}
