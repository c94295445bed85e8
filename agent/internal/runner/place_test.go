package runner

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// The highest max_bytes cuts no worker off at once, nor lifts the ceiling.
func TestByteCeiling(t *testing.T) {
	t.Parallel()
	for maxBytes, want := range map[int64]int64{
		0: 0, 1: 2 + 64<<20, 1 << 40: 1<<41 + 64<<20, 1<<62 - 32<<20: math.MaxInt64, 1 << 62: math.MaxInt64, math.MaxInt64 - 32<<20 + 1: math.MaxInt64, math.MaxInt64: math.MaxInt64,
	} {
		require.Equal(t, want, byteCeiling(maxBytes), maxBytes)
	}
}
