package testenv

import (
	"os"
	"path/filepath"
	"strings"
)

// README is the text of this repository's README.
func README(t TB) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatalf("read README: %v", err)
	}
	content, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatalf("read README: %v", err)
	}
	return string(content)
}

// InREADME is what stands in this repository's README between two texts, both of
// which must be there.
func InREADME(t TB, from, to string) string {
	t.Helper()
	_, rest, found := strings.Cut(README(t), from)
	if !found {
		t.Fatalf("README holds no %q", from)
	}
	part, _, found := strings.Cut(rest, to)
	if !found {
		t.Fatalf("README holds no %q after %q", to, from)
	}
	return part
}
