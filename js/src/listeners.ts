/** Functions by name. */
export type Listeners = Map<string, Set<(...args: any[]) => unknown>>;

/** Adds a function, and returns one that takes it away again. */
export function listen(all: Listeners, name: string, run: (...args: any[]) => unknown): () => void {
  // Each registration counts by itself, also of the same function.
  const own = (...args: unknown[]) => run(...args);
  const named = all.get(name) ?? new Set();
  all.set(name, named.add(own));
  return () => {
    if (named.delete(own) && !named.size) all.delete(name);
  };
}
