package bothways

// The most that is kept of idempotency keys.
const (
	keysMax     = 1024 // of pushes, the latest ones
	keyBytesMax = 64   // of one: a Bothways server takes no longer ones
)

// handledKeys are the idempotency keys of pushes that the application has handled, over all its sessions.
type handledKeys struct {
	known map[string]struct{}
	order []string // a ring: when it is full, the oldest is at next
	next  int
}

func (k *handledKeys) has(key string) bool {
	_, known := k.known[key]
	return known
}

// add remembers a key that is not known, if it is one.
func (k *handledKeys) add(key string) {
	if key == "" || keyBytesMax < len(key) {
		return
	}
	if k.known == nil {
		k.known = map[string]struct{}{}
	}
	k.known[key] = struct{}{}
	if len(k.order) < keysMax {
		k.order = append(k.order, key)
		return
	}
	delete(k.known, k.order[k.next])
	k.order[k.next] = key
	k.next = (k.next + 1) % keysMax
}
