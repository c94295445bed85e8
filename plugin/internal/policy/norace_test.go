//go:build !race

package policy_test

// raceDetector says that the detector's own allocations would be counted.
const raceDetector = false
