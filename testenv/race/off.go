//go:build !race

package race

const (
	// Enabled says that this build has the race detector in it.
	Enabled = false
	// Slowdown is how many times as long something may take as is claimed.
	Slowdown = 1
	// Stride is the step through cases that are tried one after the other.
	Stride = 1
)
