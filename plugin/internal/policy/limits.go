package policy

import (
	"slices"
	"time"
)

// Window is the length of the sliding window of the hourly limits.
const Window = time.Hour

// rate is how much of one window is used.
type rate struct {
	times []time.Time
	since time.Time // what happened then or before does not count any more
	count int
}

// measure counts what happened in the window before now, and returns the latest of
// latest and the times.
func measure(times []time.Time, now, latest time.Time) (rate, time.Time) {
	r := rate{times: times, since: now.Add(-Window)}
	for i := range times {
		if times[i].After(r.since) {
			r.count++
			if times[i].After(latest) {
				latest = times[i]
			}
		}
	}
	return r, latest
}

// retryAt is when one more event fits under the limit, which is used up.
func (r rate) retryAt(limit int) time.Time {
	recent := make([]time.Time, 0, r.count)
	for _, t := range r.times {
		if t.After(r.since) {
			recent = append(recent, t)
		}
	}
	slices.SortFunc(recent, time.Time.Compare)
	return recent[len(recent)-limit].Add(Window)
}
