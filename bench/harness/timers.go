package main

// timers is a heap of things that are due, the earliest first.
type timers[T any] struct {
	entries []timer[T]
}

type timer[T any] struct {
	at    int64
	thing T
}

// next is when the earliest is due.
func (t *timers[T]) next() int64 {
	if len(t.entries) == 0 {
		return never
	}
	return t.entries[0].at
}

func (t *timers[T]) add(at int64, thing T) {
	t.entries = append(t.entries, timer[T]{at, thing})
	place := len(t.entries) - 1
	for place > 0 {
		parent := (place - 1) / 2
		if t.entries[parent].at <= t.entries[place].at {
			return
		}
		t.entries[parent], t.entries[place] = t.entries[place], t.entries[parent]
		place = parent
	}
}

// take removes the earliest.
func (t *timers[T]) take() timer[T] {
	earliest := t.entries[0]
	last := len(t.entries) - 1
	t.entries[0] = t.entries[last]
	t.entries = t.entries[:last]
	for place := 0; ; {
		least := place
		for child := 2*place + 1; child <= 2*place+2 && child < last; child++ {
			if t.entries[child].at < t.entries[least].at {
				least = child
			}
		}
		if least == place {
			return earliest
		}
		t.entries[place], t.entries[least] = t.entries[least], t.entries[place]
		place = least
	}
}
