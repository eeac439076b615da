// Login attempts as they happen.

import { open } from "./api.js";
import { check, empty, h, name, pill, table, time } from "./dom.js";

export const title = "Logins";

// Rows that stay on the page.
const KEPT = 300;
// Longest line that is believed; names in it are bounded.
const LINE_MAX = 64 * 1024;

const MEANING = {
  ok: ["logged in", "good"],
  bad_credentials: ["bad credentials", "warn"],
  refused: ["refused", "warn"],
  limit: ["limit reached", "warn"],
  busy: ["server busy", "warn"],
  password_too_long: ["password too long", "warn"],
  unknown_user: ["unknown user", "warn"],
  no_route: ["no route", "bad"],
  upstream_down: ["server down", "bad"],
  directory_down: ["directory down", "bad"],
  throttled: ["throttled", "warn"],
  tls_required: ["TLS required", "warn"],
  protocol_error: ["protocol error", "warn"],
  client_gone: ["client gone", ""],
  ended: ["ended", ""],
};

function outcome(one) {
  const [text, kind] = MEANING[one.outcome] ?? [one.outcome ?? "?", ""];
  return pill(text, kind);
}

function who(one) {
  if (!one.user && !one.account) return h("span", { class: "soft" }, "unknown");
  const typed = one.user && one.account && one.user !== one.account ? h("span", { class: "sub" }, "as ", name(one.user)) : null;
  return [name(one.account || one.user), typed];
}

export function show(root, { attempt }) {
  const failed = check("Failed only", { id: "failed" });
  const live = h("span", { class: "pill push", role: "status" }, "connecting");
  const lost = h("p", { class: "note warn", hidden: true });
  const none = h("div");
  const list = table([
    { title: "Time", cell: (one) => time(one.time) },
    { title: "Outcome", cell: outcome },
    { title: "Account", class: "account", cell: who },
    { title: "Protocol", cell: (one) => [pill((one.proto ?? "?").toUpperCase()), one.mechanism ? h("span", { class: "sub" }, name(one.mechanism)) : null] },
    { title: "Client", class: "address", cell: (one) => [name(one.client ?? ""), one.via ? h("span", { class: "sub" }, "via ", name(one.via)) : null] },
    { title: "Server", class: "address", cell: (one) => [one.route ? name(one.route) : null, one.tier ? h("span", { class: "sub" }, `from ${one.tier}`) : null] },
    { title: "Why", class: "why", cell: (one) => (one.why ? name(one.why) : "") },
  ], (one) => one.key);

  let abort = null;
  let ended = false;
  let attempts = [];
  let number = 0;
  let drawing = 0;
  let missing = 0;

  function draw() {
    drawing = 0;
    list.update(attempts);
    list.element.hidden = attempts.length === 0;
    none.replaceChildren(...(attempts.length > 0 ? [] : [empty(failed.input.checked ? "No failed logins." : "No logins.")]));
    lost.hidden = missing === 0;
    lost.textContent = `${missing} logins are not shown: they arrived faster than this page could display them.`;
  }

  function take(line) {
    const record = JSON.parse(line);
    if (record.lost) missing += record.lost;
    else attempts.unshift({ ...record, key: ++number });
    attempts.length = Math.min(attempts.length, KEPT);
    // Many that come at once are drawn once.
    drawing ||= setTimeout(draw, 60);
  }

  async function follow(signal) {
    const answer = await open("GET", `/v1/logins?follow=true&failed=${failed.input.checked}`, undefined, signal);
    live.textContent = "live";
    live.className = "pill good push";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (rest.length > LINE_MAX) throw new Error("A line of the response is too long.");
      lines.filter((line) => line !== "").forEach(take);
    }
  }

  // Follows until the view is left; begins anew where the connection ends.
  async function run() {
    while (!ended) {
      abort = new AbortController();
      const mine = abort;
      attempts = [];
      missing = 0;
      draw();
      await attempt(() => follow(mine.signal));
      if (ended) return;
      live.textContent = "connecting";
      live.className = "pill warn push";
      if (!mine.signal.aborted) await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }

  failed.input.addEventListener("change", () => abort?.abort());
  root.append(h("div", { class: "row center bar" }, failed.box, live), lost, none, list.element);
  run();
  return {
    stop: () => {
      ended = true;
      clearTimeout(drawing);
      abort?.abort();
    },
  };
}
