package policy

import (
	"slices"
	"time"
)

// Window is the length of the sliding window of the hourly limits.
const Window = time.Hour

// appendRecent adds to what there is, in order, those of the times that count at that
// time: what happened a whole window before or earlier does not any more.
func appendRecent(all, times []time.Time, at time.Time) []time.Time {
	since, begin := at.Add(-Window), len(all)
	for _, t := range times {
		if t.After(since) {
			all = append(all, t)
		}
	}
	slices.SortFunc(all[begin:], time.Time.Compare)
	return all
}
