package auditlog

import (
	"errors"
	"fmt"
	"strconv"
)

// position is the place of an event in its agent's chain.
type position struct{ epoch, seq uint64 }

var errNoPosition = errors.New("no position in a chain")

func parsePosition(epoch, seq string) (position, error) {
	e, err := strconv.ParseUint(epoch, 10, 63)
	if err != nil {
		return position{}, errNoPosition
	}
	s, err := strconv.ParseUint(seq, 10, 63)
	if err != nil || e == 0 || s == 0 {
		return position{}, errNoPosition
	}
	return position{e, s}, nil
}

// String is epoch/seq, as in 1/17.
func (p position) String() string { return fmt.Sprintf("%d/%d", p.epoch, p.seq) }

func (p position) before(other position) bool {
	return p.epoch < other.epoch || p.epoch == other.epoch && p.seq < other.seq
}

// span names a run of events of one epoch.
func span(epoch, from, to uint64) string {
	if from == to {
		return fmt.Sprintf("event %d/%d", epoch, from)
	}
	return fmt.Sprintf("events %d/%d to %d/%d", epoch, from, epoch, to)
}
