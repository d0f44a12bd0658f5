// Everything that is shown is put into the page as text, never as markup: names are chosen by others.
"use strict";

const state = { sort: "bytes", reverse: false, paused: false, busy: false, round: 0 };
const at = (id) => document.getElementById(id);

function cell(row, text, className, small) {
  const td = row.insertCell();
  td.textContent = text;
  if (className) td.className = className;
  if (small) {
    const more = document.createElement("small");
    more.textContent = small;
    td.append(more);
  }
}

function fill(table, list, draw) {
  const body = document.createElement("tbody");
  for (const one of list) draw(body.insertRow(), one);
  table.tBodies[0].replaceWith(body);
}

function size(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return (unit && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[unit];
}
const count = (n) => Math.round(n).toLocaleString("en");
const percent = (share) => Math.round(100 * share) + " %";
const age = (s) => s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min" : Math.round(s / 3600) + " h";
const name = (end) => !end ? "(gone)" : end.workload ? end.workload.name : "cgroup " + end.cgroup_id;
const place = (end) => !end ? "" : end.addr + ":" + end.port + (end.pid ? " " + end.pid + "/" + (end.command || "?") : "");
const sum = (c, key) => (c.client ? c.client[key] || 0 : 0) + (c.server ? c.server[key] || 0 : 0);

function drawConnection(row, c) {
  const messages = sum(c, "fast_messages") + sum(c, "tcp_messages");
  cell(row, name(c.client), "", place(c.client));
  cell(row, name(c.server), "", place(c.server));
  cell(row, c.path, "path-" + c.path);
  cell(row, c.reason);
  cell(row, [...new Set([c.client, c.server].map((e) => e && e.state).filter(Boolean))].join(" / ") || "?");
  cell(row, count(messages), "number");
  cell(row, size(sum(c, "fast_bytes") + sum(c, "tcp_bytes")), "number");
  cell(row, size(c.rate.fast_bytes + c.rate.tcp_bytes) + "/s", "number");
  cell(row, size(sum(c, "fast_unread_bytes") + sum(c, "tcp_unread_bytes")), "number");
  cell(row, percent(messages ? sum(c, "fast_messages") / messages : 0), "number");
  cell(row, age(c.age_seconds), "number");
}

function drawFlow(row, f) {
  cell(row, f.client);
  cell(row, f.server);
  cell(row, count(f.pairs), "number");
  cell(row, count(f.rate.fast_messages + f.rate.tcp_messages), "number");
  cell(row, size(f.rate.fast_bytes + f.rate.tcp_bytes) + "/s", "number");
  cell(row, percent(f.fast_share), "number");
}

function drawReason(row, r) {
  cell(row, r.name);
  cell(row, count(r.count), "number");
  cell(row, r.text);
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function refresh() {
  if (state.busy) return;
  state.busy = true;
  try {
    const wanted = new URLSearchParams({ filter: at("filter").value, sort: state.sort, reverse: state.reverse, limit: 500 });
    const [page, flows, reasons] = await Promise.all(
      [ask("api/connections?" + wanted), ask("api/flows"), ask("api/reasons")]);
    at("problem").textContent = "";
    fill(at("connections"), page.connections, drawConnection);
    fill(at("flows"), flows, drawFlow);
    fill(at("reasons"), reasons, drawReason);
    const shown = page.connections.length < page.matched ? ", the first " + page.connections.length + " shown" : "";
    at("summary").textContent = page.matched + " of " + page.total + " connections" + shown;
    if (state.round++ % 3 === 0) at("map").src = "api/map.svg?" + state.round;
  } catch (error) {
    at("problem").textContent = error.message;
  } finally {
    state.busy = false;
  }
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const key = button.dataset.sort;
    state.reverse = state.sort === key && !state.reverse;
    state.sort = key;
    mark();
    refresh();
  });
}

function mark() {
  for (const button of document.querySelectorAll("[data-sort]")) {
    const th = button.parentElement;
    if (button.dataset.sort === state.sort) th.setAttribute("aria-sort", state.reverse ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  }
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
at("filter").addEventListener("input", refresh);
at("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  at("pause").setAttribute("aria-pressed", state.paused);
  at("pause").textContent = state.paused ? "Go on" : "Pause";
});
setInterval(() => { if (!state.paused && !document.hidden) refresh(); }, 1000);
mark();
refresh();
