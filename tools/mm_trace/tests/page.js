// Runs inside the page, in a browser: `cargo xtask page` puts it behind the page's own script. Tells its verdict in an
// element of the document, line by line.
"use strict";
(() => {
const lines = [];
let passed = 0, total = 0;
const byId = (id) => document.getElementById(id);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
function ensure(condition, words) {
  if (!condition) throw new Error(words);
}
function equal(found, expected, what) {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  ensure(left === right, `${what}: found ${left}, expected ${right}`);
}
function test(name, run) {
  total += 1;
  try {
    run();
    passed += 1;
    lines.push(`TEST ${name} ok`);
  } catch (error) {
    lines.push(`TEST ${name} FAILED: ${error.message}`);
  }
}
function set(id, value) {
  const field = byId(id);
  if (field.type === "checkbox") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("change", { bubbles: true }));
}
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const data = JSON.parse(byId("data").textContent);
const calls = data.inputs.flatMap((input) => input.items.filter((item) => item.t === "call"));
const timelines = () => all("svg[aria-label=timeline]");
const bars = () => timelines().flatMap((svg) => all(".call", svg));
const rows = () => all("tbody tr");
const bar = (words) => bars().find((one) => one.getAttribute("aria-label").startsWith(words));
const box = (one) => one.querySelector(".bar").getBBox();

test("each_call_is_a_bar_and_a_row", () => {
  ensure(calls.length > 8, `${calls.length} calls in the data`);
  click(byId("fit"));
  equal(bars().length, calls.length, "bars");
  equal(rows().length, calls.length, "rows");
});
test("a_call_inside_a_call_is_drawn_inside", () => {
  const inner = box(bar("call 8 ")), outer = box(bar("call 6 "));
  ensure(inner.x > outer.x && inner.x + inner.width < outer.x + outer.width, "it sticks out");
  ensure(inner.y > outer.y, "it is not below");
});
test("a_click_shows_the_bytes", () => {
  click(bar("call 2 "));
  const text = byId("details").textContent;
  ensure(text.includes("call 2 to variable service"), text);
  ensure(text.includes("0000  0b 00 00 00"), text);
  ensure(text.includes("GET_PAYLOAD_SIZE") && text.includes("EFI_SUCCESS"), text);
  equal(rows().filter((row) => row.classList.contains("chosen")).length, 1, "chosen rows");
});
test("a_key_and_a_row_do_the_same", () => {
  bar("call 1 ").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  ensure(byId("details").textContent.includes("call 1 to MM supervisor"), byId("details").textContent);
  click(rows()[2]);
  ensure(byId("details").textContent.includes("SET_VARIABLE"), byId("details").textContent);
});
test("what_failed_is_told_without_colour", () => {
  const failed = bars().filter((one) => one.classList.contains("failed"));
  ensure(failed.length >= 4, `${failed.length} failed`);
  for (const one of failed) {
    ensure(one.querySelector(".hatch"), "no hatching");
    ensure(one.textContent.includes("✖"), one.textContent);
    ensure(one.getAttribute("aria-label").includes("failed: "), one.getAttribute("aria-label"));
  }
  const open = bars().filter((one) => one.classList.contains("open"));
  equal(open.length, 1, "calls without an end");
  ensure(getComputedStyle(open[0].querySelector(".bar")).strokeDasharray !== "none", "not dashed");
});
test("mmis_and_errors_are_marked_in_place", () => {
  const marks = all("svg text.smi");
  ensure(marks.length >= 6, `${marks.length} marks`);
  const mark = marks[1].getBBox(), second = box(bar("call 2 "));
  ensure(mark.x > second.x && mark.x < second.x + second.width, "the MMI is not in its call");
  ensure(all("svg text.bad").length > 0, "no error is marked");
});
test("the_filter_leaves_one_recipient", () => {
  set("guid", "ed32d533-99e6-4209-9cc0-2d72cdd998a7");
  const wanted = calls.filter((call) => call.recipient === byId("guid").value).length;
  ensure(wanted > 0 && wanted < calls.length, `${wanted} wanted`);
  equal(rows().length, wanted, "rows");
  equal(bars().length, wanted, "bars");
  ensure(location.hash.includes("guid=ed32d533"), location.hash);
  set("guid", "");
  equal(bars().length, calls.length, "bars");
});
test("only_problems_can_be_shown", () => {
  set("problems", true);
  ensure(rows().length > 0 && rows().length < calls.length, `${rows().length} rows`);
  ensure(!bar("call 2 "), "a call without problems is drawn");
  set("problems", false);
});
test("time_is_an_axis", () => {
  set("axis", "time");
  const slow = box(bar("call 31 ")), quick = box(bar("call 32 "));
  ensure(slow.width > 5 * quick.width, `${slow.width} and ${quick.width}`);
  set("axis", "order");
});
test("zoom_makes_bars_wider", () => {
  const before = box(bar("call 6 ")).width;
  click(byId("in"));
  click(byId("in"));
  ensure(box(bar("call 6 ")).width > before, "no wider");
  click(byId("fit"));
});
test("text_of_the_log_is_no_markup", () => {
  ensure(!document.querySelector("img"), "an element came out of the log");
  ensure(window.hacked === undefined, "a script came out of the log");
  ensure(document.body.textContent.includes("<img src=x"), "the text is not there");
});
test("damage_and_dumps_are_shown", () => {
  const text = byId("inputs").textContent;
  ensure(text.includes("line 9, column "), text);
  ensure(text.includes("IsCommBufferValid"), text);
});
test("nothing_is_loaded", () => {
  equal(performance.getEntriesByType("resource").map((one) => one.name), [], "resources");
});

lines.push(`DONE ${passed}/${total}`);
const verdict = document.createElement("pre");
verdict.id = "verdict";
verdict.textContent = `\n${lines.join("\n")}\n`;
document.body.append(verdict);
})();
