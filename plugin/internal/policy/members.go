package policy

import (
	"iter"
	"math/bits"
)

// members are policies by their places in a set, a bit each. Those of one set have
// one length.
type members []uint64

func newMembers(policies int) members { return make(members, (policies+63)/64) }

func (m members) add(at int)      { m[at/64] |= 1 << (at % 64) }
func (m members) has(at int) bool { return m[at/64]&(1<<(at%64)) != 0 }

// join, keep and drop change m to those in either, in both, and in m alone. No
// members at all may stand for others that are none.
func (m members) join(others members) {
	for i := range others {
		m[i] |= others[i]
	}
}

func (m members) keep(others members) {
	for i := range m {
		m[i] &= others[i]
	}
}

func (m members) drop(others members) {
	for i := range m {
		m[i] &^= others[i]
	}
}

// meet tells whether some are in both.
func (m members) meet(others members) bool {
	for i := range m {
		if m[i]&others[i] != 0 {
			return true
		}
	}
	return false
}

// firstIn returns the first that is in both, or -1.
func (m members) firstIn(others members) int {
	for i := range m {
		if both := m[i] & others[i]; both != 0 {
			return i*64 + bits.TrailingZeros64(both)
		}
	}
	return -1
}

func (m members) count() int {
	n := 0
	for _, word := range m {
		n += bits.OnesCount64(word)
	}
	return n
}

// all yields each, in order.
func (m members) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, left := range m {
			for ; left != 0; left &= left - 1 {
				if !yield(i*64 + bits.TrailingZeros64(left)) {
					return
				}
			}
		}
	}
}
