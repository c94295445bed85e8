//go:build !dbopsfault

package plugin

// fault is where builds for tests can be killed, see fault.go.
func fault(rotationKind, rotationPoint) {}
