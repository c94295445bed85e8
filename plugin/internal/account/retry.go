package account

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry runs f up to so many times, as long as again says of its error that nothing
// has happened and that the next time it may, as when two touch one row of a catalog
// at once. Pauses grow, and differ, so that the two do not meet again.
func Retry(ctx context.Context, attempts int, again func(error) bool, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil || attempt == attempts || !again(err) {
			return err
		}
		pause := time.Duration(5<<attempt) * time.Millisecond
		timer := time.NewTimer(pause/2 + rand.N(pause)) //nolint:gosec // spreads attempts, protects nothing
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}
