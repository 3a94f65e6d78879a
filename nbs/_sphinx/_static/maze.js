// The page of mazes: a maze to draw in, and what the model makes of it, segment by segment.
import * as grid from "./grid.js";
import { ask, curve, part, read, say, STILL, wait } from "./page.js";
import { generator } from "./random.js";

const { GOAL, NAMES, OPEN, PATH, START, WALL } = grid;
const PATIENCE = 6; // times the trained segments: a large maze takes more of them than the one it was trained on
const PACE = 60; // least milliseconds of a segment, so that it can be seen

const reading = read("maze");
let meta = {}; // of the model
let side, cells; // of the board: its rows, and the elements
let walls, ends; // what is drawn: whether each cell is a wall, and where start and goal stand, on a wall or not
let maze; // the same as tokens
let frames; // what the model made of it: { answer, likely, halt, marks, flaws } after each segment
let seen; // which of them is on view
let following; // whether the newest one comes on view, until somebody asks for another
let turn = 0; // a new one makes whatever is being thought pointless
let busy; // the question that the worker is at

function draw() {
  const frame = frames[seen], wrong = frame && grid.changed(maze, frame.answer);
  cells.forEach((cell, at) => {
    const open = frame && maze[at] === OPEN, likely = open ? frame.likely[at] : 0;
    const said = wrong?.[at] ? `, ${NAMES[frame.answer[at]]} in the answer` : "";
    cell.textContent = ends.includes(at) ? "SG"[ends.indexOf(at)] : "";
    cell.className = `cell ${maze[at] === WALL ? "wall" : ends.includes(at) ? "end" : "open"} ${said && "wrong"}`;
    cell.style.setProperty("--likely", likely.toFixed(3));
    cell.ariaLabel = `${grid.place(at, side)}: ${NAMES[maze[at]]}` +
      `${open ? `, ${Math.round(100 * likely)} % on the path` : ""}${said}`;
  });
  part("board").classList.toggle("solved", frame?.marks.shortest ?? false);
  Object.assign(part("slider"), { disabled: !frame, max: Math.max(8, frames.length), value: seen + 1 });
  part("slider").ariaValueText = part("detail").textContent = frame ? tell(frame) : "";
  part("lines").innerHTML = curve(frames, seen, meta.halting_threshold);
}

const token = (cell) => [START, GOAL][ends.indexOf(cell)] ?? (walls[cell] ? WALL : OPEN);

// What the rules say of a segment
function tell({ marks: { connected, shortest }, flaws, halt }) {
  const more = flaws.length > 1 ? `, and ${flaws.length - 1} more like it` : "";
  const verdict = shortest ? `a shortest path, ${grid.solve(maze)} steps`
    : connected ? `connected, but no shortest path (${flaws[0].what})`
    : `not connected (${grid.place(flaws[0].cell, side)}: ${flaws[0].what}${more})`;
  return `Segment ${seen + 1} of ${frames.length}: ${verdict}. Halting probability ${halt.toFixed(2)}.`;
}

// A maze onto the board, in place of any other
function put(drawn) {
  [walls, ends] = [drawn.map((token) => token === WALL), [START, GOAL].map((end) => drawn.indexOf(end))];
  side = Math.sqrt(drawn.length);
  const row = `<div class="row" role="row">${'<div role="gridcell" tabindex="-1"></div>'.repeat(side)}</div>`;
  part("board").style.setProperty("--side", side);
  part("board").innerHTML = row.repeat(side);
  cells = [...part("board").querySelectorAll("[role=gridcell]")];
  cells[ends[0]].tabIndex = 0; // the one that the Tab key reaches
  think();
}

// hrm.puzzles.evaluate.think: one segment after the other until an answer passes, and one more, since only there the
// halting head has seen it. Whatever was thought before ends with the segment that it is at.
async function think(news = "") {
  const mine = ++turn;
  [frames, seen, following] = [[], 0, true];
  maze = walls.map((_, cell) => token(cell));
  draw();
  if (grid.solve(maze) < 0) return say(`${news}No way leads from S to G: take a wall away.`, "bad");
  say(`${news}${meta.config ? "Thinking." : "The model is on its way."}`, "busy");
  try {
    meta = await reading;
    if (meta.config.sees !== "neighbours") throw new Error("its cells see more than their neighbours");
    await busy;
    const trained = meta.config.arch.halt_max_steps;
    let passed;
    for (let at = 0; at < PATIENCE * trained && !(passed < at) && turn === mine; at++) {
      if (!at) say(`${news}Thinking.`, "busy");
      busy = ask("think", { asked: PATH, ...(!at && { tokens: maze, kinds: grid.kinds(side) }) });
      const [{ answer, likely, halt }] = await Promise.all([busy, wait(at < trained ? PACE : 0)]);
      if (turn !== mine) return;
      frames.push({ answer, likely, halt, marks: grid.marks(maze, answer), flaws: grid.check(maze, answer) });
      if (frames[at].marks.shortest) passed ??= at + 1;
      if (following) seen = passed && !frames[at].marks.shortest ? passed - 1 : at;
      if (!STILL.matches) draw();
    }
    if (turn !== mine) return;
    draw();
    const least = `shortest path, ${grid.solve(maze)} steps`;
    if (passed) return say(`Solved after ${passed} segments: a ${least}. Checked by a search.`, "good");
    const found = frames.at(-1).marks.connected ? "leads from S to G, but not as the" : "does not follow the";
    say(`Not solved: after ${frames.length} segments the answer ${found} ${least}.`, "bad");
  } catch (error) {
    if (turn === mine) say(`The model cannot run here: ${error.message}.`, "bad");
  }
}

// What a visitor does

// Put a wall, take it, or move an end; where an end has stood, the cell is what it was
function change(cell, { end, wall }) {
  if (end === undefined && !ends.includes(cell)) walls[cell] = wall;
  else if (end !== undefined && ends[1 - end] !== cell) ends[end] = cell;
}
const opposite = (cell) => ({ wall: !walls[cell] });

let brush, last; // what a drag does, and the cell where it is
const under = ({ clientX, clientY }) => cells.indexOf(document.elementFromPoint(clientX, clientY));
part("board").addEventListener("pointerdown", (event) => {
  const cell = under(event);
  if (event.button || cell < 0) return;
  brush = ends.includes(cell) ? { end: ends.indexOf(cell) } : opposite(cell);
  part("board").setPointerCapture(event.pointerId);
  event.preventDefault(); // no text is selected
  cells[last = cell].focus({ preventScroll: true });
  if (brush.end === undefined) change(cell, brush), think();
});
part("board").addEventListener("pointermove", (event) => {
  const cell = brush ? under(event) : -1;
  if (cell < 0 || cell === last) return;
  const [from, to] = [last, cell].map((at) => [Math.floor(at / side), at % side]);
  const far = Math.max(...from.map((at, axis) => Math.abs(to[axis] - at))); // a quick hand leaves out cells
  for (let step = 1; step <= far; step++) {
    const [row, column] = from.map((at, axis) => Math.round(at + (to[axis] - at) * step / far));
    change(row * side + column, brush);
  }
  last = cell;
  think();
});
for (const kind of ["pointerup", "pointercancel"]) part("board").addEventListener(kind, () => (brush = null));
part("board").addEventListener("focusin", ({ target }) => {
  cells.forEach((cell) => (cell.tabIndex = cell === target ? 0 : -1));
});
part("board").addEventListener("keydown", (event) => {
  const cell = cells.indexOf(event.target), row = cell - cell % side;
  const to = { ArrowUp: cell - side, ArrowDown: cell + side, ArrowLeft: Math.max(row, cell - 1),
    ArrowRight: Math.min(row + side - 1, cell + 1), Home: row, End: row + side - 1 }[event.key];
  const drawn = { " ": opposite(cell), s: { end: 0 }, g: { end: 1 } }[event.key.toLowerCase()];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (to !== undefined) cells[to]?.focus();
  else if (drawn) change(cell, drawn), think(`${grid.place(cell, side)} is now ${NAMES[token(cell)]}. `);
  else if (event.key === "Enter") think();
  else return;
  event.preventDefault();
});
const fresh = () => put(grid.generate(Number(part("size").value), generator(Number(part("seed").value))));
for (const name of ["size", "seed"]) part(name).addEventListener("change", fresh);
part("new").addEventListener("click", () => (part("seed").value++, fresh()));
part("slider").addEventListener("input", ({ target }) => {
  [seen, following] = [Math.min(target.value, frames.length) - 1, false];
  draw();
});
part("go").addEventListener("click", () => {
  if (!part("told").matches(".busy")) return think();
  turn++;
  draw(); // as far as it has come
  say("Stopped.");
});

fresh();
