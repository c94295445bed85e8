package docker

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"
)

// profileSource is the worker's seccomp profile: Docker's default one (package
// github.com/moby/profiles/seccomp) without what a worker has no use for.
// TestSeccompProfile_IsNarrowedDefault derives it and says what is left out and
// why; go test -update writes it.
//
//go:embed seccomp.json
var profileSource []byte

// seccompProfile is the profile as the daemon takes it.
var seccompProfile = sync.OnceValues(func() (string, error) {
	var profile json.RawMessage
	if err := json.Unmarshal(profileSource, &profile); err != nil {
		return "", fmt.Errorf("read seccomp profile: %w", err)
	}
	compact, err := json.Marshal(profile)
	if err != nil {
		return "", fmt.Errorf("encode seccomp profile: %w", err)
	}
	return string(compact), nil
})
