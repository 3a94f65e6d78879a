// A 9x9 board, under the names of hrm.sudoku: text, rules, symmetries. A grid is 81 digits, row by row, 0 for a blank.

import { agreement } from "./hrm.js";

const NINE = [1, 2, 3, 4, 5, 6, 7, 8, 9], CELLS = [...Array(81).keys()], BOX = 3;
const row = (cell) => Math.floor(cell / 9), column = (cell) => cell % 9;
const box = (cell) => BOX * Math.floor(row(cell) / BOX) + Math.floor(column(cell) / BOX);
export const place = (cell) => `row ${row(cell) + 1} column ${column(cell) + 1}`;

// hrm.sudoku.model.coordinates and hrm.sudoku.model.kinds
const coordinates = () => CELLS.map((cell) => [row(cell), column(cell), box(cell)]);
export const kinds = () => agreement(coordinates());

// hrm.sudoku.rules.geometry: the cells of each unit: rows, then columns, then boxes
const geometry = [row, column, box].flatMap((unit) => NINE.map((n) => CELLS.filter((cell) => unit(cell) === n - 1)));

// hrm.sudoku.rules.from_text: a grid of one line or several; an Error says what is wrong with it
export function from_text(text) {
  const lines = text.split("\n").filter((line) => !/^[-+=*|\s]*[-=][-+=*|\s]*$/.test(line)); // those between boxes
  const chars = [...lines.join("").replace(/[\s|]/g, "")], at = chars.findIndex((char) => !/[1-9.0_*]/.test(char));
  if (at >= 0) throw new Error(`Character ${at + 1} is ${chars[at]}; allowed are 1 to 9, or . 0 _ * for a blank.`);
  if (chars.length !== 81) throw new Error(`A puzzle has 81 characters; here are ${chars.length}.`);
  return chars.map((char) => Number(char) || 0);
}

// hrm.sudoku.rules.to_text
export const to_text = (grid) => grid.map((digit) => digit || ".").join("");

// hrm.sudoku.rules.violations: a sentence and its cells for each digit that a unit has more than once
export const violations = (grid) => geometry.flatMap((unit, at) => NINE.flatMap((digit) => {
  const cells = unit.filter((cell) => grid[cell] === digit), name = ["row", "column", "box"][Math.floor(at / 9)];
  const where = cells.map(place).join(" and ");
  const says = `${name} ${at % 9 + 1} has ${cells.length} times the digit ${digit}, at ${where}`;
  return cells.length > 1 ? [{ says, cells }] : [];
}));

// hrm.sudoku.rules.check: everything that is wrong with an answer
export const check = (puzzle, answer) => [
  ...CELLS.filter((cell) => !answer[cell]).map((cell) => ({ says: `${place(cell)} is blank`, cells: [cell] })),
  ...CELLS.filter((cell) => puzzle[cell] && answer[cell] && puzzle[cell] !== answer[cell])
    .map((cell) => ({ says: `${place(cell)} is ${answer[cell]}, the clue says ${puzzle[cell]}`, cells: [cell] })),
  ...violations(answer),
];

// hrm.sudoku.rules.BLANK and hrm.sudoku.evaluate.digits: 0 is padding, 1 a blank, digit d is d + 1
export const tokens = (grid) => grid.map((digit) => digit + 1);
export const digits = (tokens) => tokens.map((token) => Math.max(token, 1) - 1);

const argsort = (values) => [...values.keys()].sort((a, b) => values[a] - values[b]);

// hrm.sudoku.symmetry.identity: cell s takes its content from cells[s], digit d becomes digits[d]
export const identity = () => ({ cells: [...CELLS], digits: [0, ...NINE] });

// hrm.sudoku.symmetry.draw_symmetry: bands, stacks, rows and columns within them, digits, and whether all is transposed
export function draw_symmetry(random) {
  const order = (many) => argsort(Array.from({ length: many }, random));
  const lines = () => order(BOX).flatMap((group) => order(BOX).map((line) => BOX * group + line));
  const rows = lines(), columns = lines(), turned = random() < 0.5;
  const cells = CELLS.map((cell) => (turned ? [column, row] : [row, column]).map((of) => of(cell)))
    .map(([down, right]) => 9 * rows[down] + columns[right]);
  return { cells, digits: [0, ...order(9).map((n) => n + 1)] };
}

// hrm.sudoku.symmetry.Symmetry.inverse and apply_symmetry
export const inverse = ({ cells, digits }) => ({ cells: argsort(cells), digits: argsort(digits) });
export const apply_symmetry = (grid, { cells, digits }) => cells.map((cell) => digits[grid[cell]]);
