// Package wait lets a goroutine rest without missing the end of its work.
package wait

import (
	"context"
	"time"
)

// For waits and reports whether ctx still stands.
func For(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
