// A maze, under the names of hrm.maze: rules and a generator. A maze is square, its tokens stand row after row.

// hrm.maze.rules.TOKENS, padding among them
export const WALL = 1, OPEN = 2, START = 3, GOAL = 4, PATH = 5;
export const NAMES = ["padding", "a wall", "an open cell", "the start", "the goal", "a mark"];
const side = (maze) => Math.sqrt(maze.length);
export const place = (cell, side) => `row ${Math.floor(cell / side) + 1} column ${cell % side + 1}`;

// The cells beside one: down, left, right, up; with the kind of each
const beside = (cell, side) => [[1, 0], [0, -1], [0, 1], [-1, 0]]
  .map(([down, right]) => [Math.floor(cell / side) + down, cell % side + right, 3 * (down + 1) + right + 1])
  .filter(([row, column]) => Math.min(row, column) >= 0 && Math.max(row, column) < side)
  .map(([row, column, kind]) => [row * side + column, kind]);

// hrm.maze.model.kinds of what a cell sees that sees its `neighbours`, and itself
export const kinds = (side) => Array.from({ length: side ** 2 }, (_, cell) => [[cell, 4], ...beside(cell, side)]);

// hrm.maze.rules.distances: steps from the start, breadth first; -1 for walls and for what is out of reach
export function distances(maze) {
  const steps = maze.map(() => -1), queue = [maze.indexOf(START)];
  steps[queue[0]] = 0;
  for (const cell of queue)
    for (const [other] of beside(cell, side(maze)))
      if (maze[other] !== WALL && steps[other] < 0) steps[other] = steps[cell] + 1, queue.push(other);
  return steps;
}

// hrm.maze.rules.solve: steps of a shortest path; -1 where there is no way
export const solve = (maze) => distances(maze)[maze.indexOf(GOAL)];

// hrm.maze.rules.changed: what an answer changes otherwise than from open to marked
export const changed = (maze, answer) =>
  maze.map((token, cell) => token !== answer[cell] && !(token === OPEN && answer[cell] === PATH));

const along = (answer) => distances(answer.map((token) => (token === OPEN ? WALL : token))); // marks alone
const many = (answer) => answer.filter((token) => token === PATH).length;

// hrm.maze.rules.marks
export function marks(maze, answer) {
  const connected = !changed(maze, answer).includes(true) && along(answer)[maze.indexOf(GOAL)] >= 0;
  return { connected, shortest: connected && many(answer) === solve(maze) - 1 };
}

// hrm.maze.rules.check: everything that keeps an answer from being a shortest path, with its cell
export function check(maze, answer) {
  const steps = along(answer), marked = many(answer), least = solve(maze) - 1;
  const wrong = changed(maze, answer).flatMap((is, cell) => (is ? [cell] : []));
  const what = (cell) => `${NAMES[answer[cell]]} in the answer; the maze has ${NAMES[maze[cell]]}`;
  if (wrong.length) return wrong.map((cell) => ({ cell, what: what(cell) }));
  if (steps[maze.indexOf(GOAL)] < 0) return [{ cell: steps.indexOf(Math.max(...steps)),
    what: "the marks end here; allowed is a path from the start to the goal" }];
  return marked <= least ? [] : [{ cell: maze.indexOf(START),
    what: `${marked} marks between start and goal; a shortest path has ${least}` }];
}

// hrm.maze.generate.generate: a perfect maze, rooms joined by Wilson's walks; start and goal stand far apart
export function generate(side, random) {
  const maze = Array(side ** 2).fill(WALL), many = side >> 1, rooms = [...Array(many ** 2).keys()], out = [];
  const any = (list) => list[Math.floor(random() * list.length)];
  const at = (room) => (2 * Math.floor(room / many) + 1) * side + 2 * (room % many) + 1;
  maze[at(rooms.length >> 1)] = OPEN;
  for (const first of rooms) { // a walk until it meets what is open; the last way out of a room is the one that stays
    for (let room = first; maze[at(room)] === WALL; room = out[room]) out[room] = any(beside(room, many))[0];
    for (let room = first; maze[at(room)] === WALL; room = out[room])
      maze[at(room)] = maze[(at(room) + at(out[room])) / 2] = OPEN;
  }
  maze[at(any(rooms))] = START;
  const steps = distances(maze), longest = Math.max(...steps);
  maze[at(any(rooms.filter((room) => 4 * steps[at(room)] >= 3 * longest)))] = GOAL;
  return maze;
}
