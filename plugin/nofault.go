//go:build !dbopsfault

package plugin

import "time"

// systemClock is the time. In builds for tests it can be set wrong, see fault.go.
func systemClock() func() time.Time { return time.Now }

// fault is where builds for tests can be killed, see fault.go.
func fault(rotationKind, rotationPoint) {}
