package command

import (
	"fmt"
	"math"
	"time"
)

// meter measures how fast a growing number of bytes grows, evened out over the
// last seconds.
type meter struct {
	at    time.Time
	bytes int64
	rate  float64 // bytes per second
}

// meterMemory is the time after which an older rate counts for about a third.
const meterMemory = 3 * time.Second

// add takes a look. A number that shrank starts the measurement anew.
func (m *meter) add(at time.Time, bytes int64) {
	passed := at.Sub(m.at)
	switch {
	case m.at.IsZero() || bytes < m.bytes:
		m.rate = 0
	case passed <= 0:
		return
	default:
		now := float64(bytes-m.bytes) / passed.Seconds()
		if m.rate == 0 {
			m.rate = now
			break
		}
		weight := math.Exp(-passed.Seconds() / meterMemory.Seconds())
		m.rate = weight*m.rate + (1-weight)*now
	}
	m.at, m.bytes = at, bytes
}

// perSecond is the rate in bytes.
func (m *meter) perSecond() float64 { return m.rate }

// left is the time until total is reached at this rate.
func (m *meter) left(total int64) (time.Duration, bool) {
	if m.rate < 1 || total <= m.bytes {
		return 0, false
	}
	seconds := float64(total-m.bytes) / m.rate
	if seconds > (100 * time.Hour).Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// sizeText is a number of bytes for people.
func sizeText(bytes int64) string {
	size, unit := float64(bytes), "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if size < 1024 {
			break
		}
		size, unit = size/1024, larger
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %s", size, unit)
}
