// As warm.js, as a module of the other kind.
export const handler = undefined;
