package worker

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// redactor removes known passwords from what passes through it. It sees one log
// line per Write, which is how hclog writes.
type redactor struct {
	out io.Writer

	mu      sync.Mutex
	secrets map[string]struct{}
}

func newRedactor(out io.Writer) *redactor {
	return &redactor{out: out, secrets: make(map[string]struct{})}
}

// add remembers a password for the life of the process: an error about it may
// turn up after it was replaced.
func (r *redactor) add(secret wire.Secret) {
	const shortest = 4 // shorter ones would only garble the log
	value := secret.Reveal()
	if len(value) < shortest {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[value] = struct{}{}
}

// text returns s without the known passwords.
func (r *redactor) text(s string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for secret := range r.secrets {
		s = strings.ReplaceAll(s, secret, wire.Secret{}.String())
	}
	return s
}

func (r *redactor) Write(line []byte) (int, error) {
	r.mu.Lock()
	clean := line
	for secret := range r.secrets {
		clean = bytes.ReplaceAll(clean, []byte(secret), []byte(wire.Secret{}.String()))
	}
	r.mu.Unlock()
	if _, err := r.out.Write(clean); err != nil {
		return 0, err
	}
	return len(line), nil
}
