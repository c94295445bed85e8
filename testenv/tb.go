package testenv

// TB is the part of testing.TB the helpers need, small enough for programs that
// are no tests to supply; [Run] does.
//
// A TB may also have Skipf, Failed and Name. Without Skipf a missing part is
// fatal; without Failed no logs are printed at the end.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	// Fatalf must not return.
	Fatalf(format string, args ...any)
	// Cleanup registers f to be called at the end, last registered first.
	Cleanup(f func())
	TempDir() string
}

// failed says whether the test behind t has failed, if t can tell.
func failed(t TB) bool {
	f, ok := t.(interface{ Failed() bool })
	return ok && f.Failed()
}
