package plugin

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// SCRAM stretches passwords so that weak ones are not found from a stolen
// verifier. PostgreSQL runs the iterations on every CREATE ROLE and every login.
// They add nothing to a machine-made password of 112 bits or more.
const (
	detailSCRAMIterations  = "scram_iterations"
	defaultSCRAMIterations = 4096 // some clients refuse fewer
	mostSCRAMIterations    = 100000
	// operationSCRAMIterations is for logins that only our own agent uses.
	operationSCRAMIterations = 1
)

// What is taken for a password that needs no stretching.
const (
	strongBits = 112
	// estimateMargin covers what an estimate from single characters cannot see:
	// passwords that a policy's rules rule out, one character depending on
	// another. Vault draws until its rules are met, within a second, so they
	// cannot rule out more than this.
	estimateMargin  = 16
	estimateSamples = 256
	estimateKept    = 10 * time.Minute
	// printableBits is the most a character can have, for a quick answer.
	printableBits = 8
)

// passwordStrength remembers which password policies make strong passwords.
type passwordStrength struct {
	mu    sync.Mutex
	known map[string]knownStrength
}

type knownStrength struct {
	strong bool
	until  time.Time
}

// iterations returns how often a new login's password is stretched: as the
// connection says, once for the agent's own logins. Fewer than the default are
// refused for passwords of a policy that may make weak ones, and not taken for
// the agent's. It is 0 for products without SCRAM.
func (b *backend) iterations(ctx context.Context, c *connection, policy, operationID string) (int, error) {
	if c.product.engine != wire.EnginePostgres {
		return 0, nil
	}
	wanted := c.number(detailSCRAMIterations)
	if wanted == 0 {
		wanted = defaultSCRAMIterations
	}
	stretched := max(wanted, defaultSCRAMIterations)
	if operationID != "" {
		wanted = operationSCRAMIterations
	}
	if wanted >= defaultSCRAMIterations || policy == "" {
		return wanted, nil
	}
	strong, err := b.strongPolicy(ctx, policy)
	switch {
	case err != nil:
		return 0, err
	case strong:
		return wanted, nil
	case operationID != "":
		return stretched, nil
	}
	refusal := invalidField(detailSCRAMIterations,
		"%d are fewer than %d, and passwords of policy %q may have fewer than %d bits", wanted, defaultSCRAMIterations, policy, strongBits)
	refusal.Hint = "make the policy's passwords longer (25 letters and digits are enough), use no policy, or leave scram_iterations out"
	return 0, refusal
}

// rotationIterations returns how often a rotated password is stretched. What is
// refused for a new login is stretched as by default here: a rotation that was due
// is better done.
func (b *backend) rotationIterations(ctx context.Context, c *connection, policy string) (int, error) {
	iterations, err := b.iterations(ctx, c, policy, "")
	var refusal *wire.Error
	if errors.As(err, &refusal) && refusal.Field == detailSCRAMIterations {
		return defaultSCRAMIterations, nil
	}
	return iterations, err
}

// checkIterations refuses too few iterations for the connection's own policy when
// it is configured; roles with a policy of their own are looked at in use.
func (b *backend) checkIterations(ctx context.Context, c *connection) error {
	_, err := b.iterations(ctx, c, c.PasswordPolicy, "")
	return err
}

// strongPolicy reports whether a policy's passwords surely have 112 bits. A plugin
// cannot read a policy, so it is estimated from passwords made by it.
func (b *backend) strongPolicy(ctx context.Context, policy string) (bool, error) {
	now := b.now()
	s := &b.accounts.strength
	s.mu.Lock()
	known := s.known[policy]
	s.mu.Unlock()
	if now.Before(known.until) {
		return known.strong, nil
	}
	samples := make([]string, 0, estimateSamples)
	for range estimateSamples {
		password, err := b.newPassword(ctx, policy)
		if err != nil {
			return false, err
		}
		samples = append(samples, password.Reveal())
		if len(samples[0])*printableBits < strongBits+estimateMargin {
			break // however they are made
		}
	}
	strong := passwordBits(samples) >= strongBits+estimateMargin
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[string]knownStrength)
	}
	s.known[policy] = knownStrength{strong: strong, until: now.Add(estimateKept)}
	return strong, nil
}

// passwordBits estimates the min-entropy of the shortest of the passwords by the
// most common value of NIST SP 800-90B (6.3.1): no character is taken to have more
// than the 99 % upper bound of the most frequent one allows.
func passwordBits(samples []string) float64 {
	if len(samples) < estimateSamples {
		return 0
	}
	shortest, total, most := math.MaxInt, 0, 0
	counts := make(map[rune]int)
	for _, sample := range samples {
		length := 0
		for _, c := range sample {
			length++
			counts[c]++
			most = max(most, counts[c])
		}
		shortest, total = min(shortest, length), total+length
	}
	if shortest == 0 {
		return 0
	}
	p := float64(most) / float64(total)
	p = min(1, p+2.576*math.Sqrt(p*(1-p)/float64(total-1)))
	return -math.Log2(p) * float64(shortest)
}
