// Package race tells tests whether they run under the race detector, whose build
// takes several times as long as the one users run. What is claimed of time or of
// allocations is claimed of the latter; and a loop that only counts cases, with
// nothing running beside it, proves there what it proves without.
package race
