// The frame of the page: which view is shown, how the node is, what may be done here.

import { forgetToken, get, hasToken } from "./api.js";
import { confirmed, h, visible } from "./dom.js";
import * as overview from "./overview.js";
import * as sessions from "./sessions.js";
import * as logins from "./logins.js";
import * as throttle from "./throttle.js";
import * as routes from "./routes.js";
import * as upstreams from "./upstreams.js";
import * as domains from "./domains.js";
import * as certificates from "./certificates.js";

const VIEWS = { overview, sessions, logins, throttle, routes, upstreams, domains, certificates };
// How often the state in the head of the page is asked for, in milliseconds.
const STATE = 10_000;

const part = (id) => document.getElementById(id);
let access = null;
// The view that is shown: its key, how it is ended, and whether something in it is not saved.
let shown = null;

function trouble(error) {
  part("trouble").hidden = !error;
  if (!error) return;
  const lost = error instanceof TypeError;
  const text = lost ? "Portico does not answer. Trying again…" : error.message;
  part("trouble").textContent = text.split("\n").map(visible).join("\n");
}

// Does what asks the API; says so if it cannot.
async function attempt(work) {
  try {
    await work();
    trouble(null);
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
  }
}

async function state() {
  const status = await get("/v1/status");
  part("node").textContent = visible(status.node);
  document.title = `${visible(status.node)} – Portico`;
  const pill = part("ready");
  pill.textContent = status.ready ? "in service" : "out of service";
  pill.className = `pill ${status.ready ? "good" : "bad"}`;
  pill.title = status.not_ready.join("; ");
}

async function learnAccess() {
  access = await get("/v1/access");
  part("access").hidden = access.may_change;
  part("access").textContent = access.may_change ? "" : `You can view everything but change nothing: ${access.why_not}.`;
  part("forget").hidden = !hasToken();
}

function every(milliseconds, work) {
  let timer = null;
  let ended = false;
  const turn = async () => {
    if (!document.hidden) await attempt(work);
    if (!ended) timer = setTimeout(turn, milliseconds);
  };
  timer = setTimeout(turn, milliseconds);
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

function isUnsaved() {
  return shown?.unsaved?.() ?? false;
}

async function show(focus) {
  const wanted = location.hash.slice(1);
  const key = Object.hasOwn(VIEWS, wanted) ? wanted : "overview";
  if (shown?.key === key) return;
  if (isUnsaved()) {
    const before = shown;
    history.replaceState(null, "", `#${before.key}`);
    const leaves = await confirmed("Leave without saving?", ["What you have changed here is not stored yet."], "Leave");
    if (!leaves || shown !== before) return;
    history.replaceState(null, "", `#${key}`);
  }
  const view = VIEWS[key];
  shown?.end();
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.hash === `#${key}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (current) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const root = h("div");
  part("view").replaceChildren(h("h1", {}, view.title), root);
  if (focus) part("main").focus();
  const context = { mayChange: access?.may_change ?? false, attempt, state: () => attempt(state) };
  const { refresh, seconds, stop, unsaved } = view.show(root, context);
  let stopAsking = () => {};
  const mine = {
    key,
    unsaved,
    end: () => {
      stopAsking();
      stop?.();
    },
  };
  shown = mine;
  if (refresh) await attempt(refresh);
  if (refresh && seconds && shown === mine) stopAsking = every(seconds * 1000, refresh);
}

async function begin() {
  for (;;) {
    let failed = false;
    await attempt(async () => {
      failed = true;
      await learnAccess();
      failed = false;
    });
    if (!failed) break;
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
  await attempt(state);
  every(STATE, state);
  addEventListener("hashchange", () => show(true));
  addEventListener("beforeunload", (event) => {
    if (isUnsaved()) event.preventDefault();
  });
  part("forget").addEventListener("click", () => {
    forgetToken();
    location.reload();
  });
  // The address after the # says which view it is.
  part("skip").addEventListener("click", (event) => {
    event.preventDefault();
    part("main").focus();
  });
  await show(false);
}

begin();
