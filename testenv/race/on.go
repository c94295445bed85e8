//go:build race

package race

const (
	// Enabled says that this build has the race detector in it.
	Enabled = true
	// Slowdown is how many times as long something may take as is claimed.
	Slowdown = 6
	// Stride is the step through cases that are tried one after the other: a prime,
	// for no length or position is a multiple of it by design.
	Stride = 7
)
