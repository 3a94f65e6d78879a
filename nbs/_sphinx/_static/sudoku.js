// The front page's Sudoku: a board to type into, and what the model makes of it, segment by segment.
import * as board from "./board.js";
import { ask, curve, part, read, say, STILL, wait } from "./page.js";
import { generator } from "./random.js";

const TRIES = 16; // looks at a puzzle, the first as it is, the others in disguise; as many as in the book's figures
const PATIENCE = 4; // hrm.sudoku.evaluate.PATIENCE: times the trained segments that a look may take
const PACE = 60; // least milliseconds of a segment of the first look, so that it can be seen

const reading = read("sudoku"), kinds = board.kinds();
const cell = '<div role="gridcell"><input inputmode="numeric" autocomplete="off" tabindex="-1"></div>';
part("board").innerHTML = `<div class="row" role="row">${cell.repeat(9)}</div>`.repeat(9);
const inputs = [...part("board").querySelectorAll("input")];
inputs[0].tabIndex = 0; // the one that the Tab key reaches

let meta = {}; // of the model
let clues; // the puzzle
let frames; // what the model made of it: { look, answer, sure, halt, wrong } after each segment, look after look
let seen; // which of them is on view
let following; // whether the newest one comes on view, until somebody asks for another
let turn = 0; // a new one makes whatever is being thought pointless

function draw() {
  const frame = frames[seen], before = frame?.look === frames[seen - 1]?.look ? frames[seen - 1] : undefined;
  const wrong = new Set((frame?.wrong ?? board.violations(clues)).flatMap(({ cells }) => cells));
  const moved = inputs.map((_, cell) => frame && frame.answer[cell] !== (before?.answer ?? clues)[cell]);
  inputs.forEach((input, cell) => {
    const digit = clues[cell] || frame?.answer[cell] || "", kind = clues[cell] ? "clue" : digit ? "answer" : "blank";
    const marks = [kind, before && moved[cell] && "changed", digit && wrong.has(cell) && "wrong"].filter(Boolean);
    const sure = kind === "answer" ? frame.sure[cell] : 0, known = sure ? `, ${Math.round(100 * sure)} % sure` : "";
    input.value = digit;
    input.ariaLabel = `${board.place(cell)}: ${marks.join(", ")} ${digit}${known}`;
    input.parentNode.className = `cell ${marks.join(" ")}`;
    input.parentNode.style.setProperty("--sure", sure ** 2);
  });
  part("board").classList.toggle("solved", frame?.wrong.length === 0);
  Object.assign(part("slider"), { disabled: !frame, max: Math.max(8, frames.length), value: seen + 1 });
  part("slider").ariaValueText = part("detail").textContent = !frame ? "" :
    `Segment ${seen + 1} of ${frames.length}${frame.look ? `, in disguise ${frame.look}` : ""}: ` +
    `${moved.filter(Boolean).length} ${before ? "changed" : "filled"}, ${wrong.size || "none"} wrong, ` +
    `halting probability ${frame.halt.toFixed(2)}`;
  part("lines").innerHTML = curve(frames, seen, meta.halting_threshold);
}

// A puzzle onto the board, in place of any other and of what was thought about it; whether it can be thought about
function put(puzzle) {
  turn++;
  [clues, frames, seen, following] = [puzzle, [], 0, true];
  part("text").value = part("choice").value = board.to_text(puzzle);
  part("text").ariaInvalid = false;
  if (part("choice").selectedIndex < 0) part("choice").value = ""; // "your own"
  const given = puzzle.filter(Boolean).length, [broken] = board.violations(puzzle);
  if (broken) say(`No answer can exist: ${broken.says}.`, "bad");
  else say(given ? `${given} clues.` : "An empty board: type digits into it, or paste a puzzle.");
  draw();
  return given && !broken;
}

// hrm.puzzles.restarts.restarts, for one puzzle: as it is, then in one disguise after the other, until an answer passes
async function solve(text) {
  try {
    if (!put(board.from_text(text))) return;
  } catch (error) {
    turn++;
    part("text").ariaInvalid = true;
    return say(error.message, "bad");
  }
  const mine = turn, random = generator(0);
  say("The model is on its way.", "busy");
  try {
    meta = await reading;
    for (let look = 0; look < TRIES && turn === mine; look++) {
      say(look ? `The answer breaks a rule. Looking again, in disguise ${look} of ${TRIES - 1}.` : "Thinking.", "busy");
      const passed = await think(look, look ? board.draw_symmetry(random) : board.identity(), mine);
      const how = look ? `in disguise ${look}, after ${passed} segments`
        : `after ${passed} segments, no disguise needed`;
      if (passed) return say(`Solved ${how}. Checked: every clue is kept, and no rule is broken.`, "good");
    }
    if (turn === mine) say(`Not solved: in ${TRIES} looks no answer kept the clues and broke no rule.`, "bad");
  } catch (error) {
    say(`The model cannot run here: ${error.message}.`, "bad");
  }
}

// hrm.puzzles.evaluate.think: one segment after the other, with the disguise taken off, and one more than it takes to
// pass, since only there the halting head has seen the answer; after how many an answer passed, or nothing
async function think(look, disguise, mine) {
  const back = board.inverse(disguise), trained = meta.config.arch.halt_max_steps, first = frames.length;
  const tokens = board.tokens(board.apply_symmetry(clues, disguise));
  let passed;
  for (let at = 0; at < PATIENCE * trained && !(passed < at); at++) {
    const asked = ask("think", at ? {} : { tokens, kinds }), least = look || at >= trained ? 0 : PACE;
    const [{ answer, sure, halt }] = await Promise.all([asked, wait(least)]);
    if (turn !== mine) return;
    const found = board.apply_symmetry(board.digits(answer), back), wrong = board.check(clues, found);
    frames.push({ look, answer: found, sure: back.cells.map((cell) => sure[cell]), halt, wrong });
    if (!wrong.length) passed ??= at + 1;
    if (following) seen = first + (wrong.length && passed ? passed - 1 : at);
    if (!STILL.matches) draw();
  }
  draw();
  return passed;
}

// What a visitor does

part("board").addEventListener("focusin", ({ target }) => {
  inputs.forEach((input) => (input.tabIndex = input === target ? 0 : -1));
  target.select();
});
part("board").addEventListener("keydown", (event) => {
  const cell = inputs.indexOf(event.target), row = cell - cell % 9;
  const to = { ArrowUp: cell - 9, ArrowDown: cell + 9, ArrowLeft: Math.max(row, cell - 1),
    ArrowRight: Math.min(row + 8, cell + 1), Home: row, End: row + 8 }[event.key];
  if (event.key === "Enter") solve(board.to_text(clues));
  else if (["Backspace", "Delete", " "].includes(event.key)) put(clues.with(cell, 0));
  else if (to !== undefined) inputs[to]?.focus();
  else return;
  event.preventDefault();
});
part("board").addEventListener("beforeinput", (event) => { // what a cell shows is drawn, never typed
  const typed = event.inputType.startsWith("delete") ? "." : event.data;
  if (/^[0-9.]$/.test(typed)) put(clues.with(inputs.indexOf(event.target), Number(typed) || 0));
  event.preventDefault();
});
part("board").addEventListener("paste", (event) => solve(event.clipboardData.getData("text")));
part("text").addEventListener("focus", ({ target }) => target.select());
part("text").addEventListener("input", ({ target }) => solve(target.value));
part("choice").addEventListener("change", ({ target }) => solve(target.value || ".".repeat(81)));
part("slider").addEventListener("input", ({ target }) => {
  [seen, following] = [Math.min(target.value, frames.length) - 1, false];
  draw();
});
part("clear").addEventListener("click", () => put(clues.map(() => 0)));
part("go").addEventListener("click", () => {
  if (!part("told").matches(".busy")) return solve(part("text").value);
  turn++;
  say("Stopped.");
});

solve(part("choice").value);
