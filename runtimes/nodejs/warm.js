// Loaded once by a process that waits for its function, and forgotten: the first module of a kind takes longest.
exports.handler = undefined;
