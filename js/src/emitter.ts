/** Listeners by name. What one throws is reported and hurts nobody else. */
export class Emitter<E> {
  private listeners_ = new Map<keyof E, Set<(event: any) => void>>();

  constructor(private host_: { report_(error: unknown, where: string): void }) {}

  on_<N extends keyof E>(name: N, listener: (event: E[N]) => void): () => void {
    const listeners = this.listeners_.get(name) ?? new Set();
    this.listeners_.set(name, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  emit_<N extends keyof E>(name: N, event: E[N]): void {
    for (const listener of this.listeners_.get(name) ?? []) {
      try {
        listener(event);
      } catch (error) {
        this.host_.report_(error, `a listener of "${String(name)}"`);
      }
    }
  }
}
