/** What a visitor can do something about: the message says what, and what next. */
export class Problem extends Error {}
