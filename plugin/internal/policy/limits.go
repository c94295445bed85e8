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

	recent []time.Time // those that count, in order; made when first needed
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
func (r *rate) retryAt(limit int) time.Time {
	if r.recent == nil {
		r.recent = make([]time.Time, 0, r.count)
		for _, t := range r.times {
			if t.After(r.since) {
				r.recent = append(r.recent, t)
			}
		}
		slices.SortFunc(r.recent, time.Time.Compare)
	}
	return r.recent[len(r.recent)-limit].Add(Window)
}
