package policy

import (
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// terms are what a policy asks of an operation that it permits, where it does not
// matter which policy asks.
type terms struct {
	maxBytes, maxRows     int64
	maxDuration, cloneTTL time.Duration
	requireTLS, preview   bool
	undecided             string
}

func (p Policy) terms() terms {
	return terms{
		maxBytes: p.MaxBytes, maxRows: p.MaxRows, maxDuration: p.MaxDuration, cloneTTL: p.CloneTTL,
		requireTLS: p.RequireTLS, preview: p.Preview, undecided: p.undecided(),
	}
}

func (t *terms) add(d *wire.Decision, kind wire.Kind) {
	d.MaxBytes = stricter(d.MaxBytes, t.maxBytes)
	d.MaxRows = stricter(d.MaxRows, t.maxRows)
	d.MaxDuration = stricter(d.MaxDuration, t.maxDuration)
	d.RequireTLS = d.RequireTLS || t.requireTLS
	if d.UndecidedColumns != UndecidedStop && t.undecided != "" {
		d.UndecidedColumns = t.undecided
	}
	d.Preview = d.Preview && t.preview
	if kind == wire.KindClone {
		d.CloneTTL = stricter(d.CloneTTL, t.cloneTTL)
	}
}

// asks tells whether [Policy.ask] adds anything.
func (p Policy) asks() bool {
	return len(p.Agents) > 0 || len(p.AgentLabels) > 0 || p.Approvals != nil && p.Approvals.Count > 0 || p.Mask != ""
}

// ask adds what the policy asks for in its own name.
func (p *Policy) ask(d *wire.Decision) {
	if len(p.Agents) > 0 || len(p.AgentLabels) > 0 {
		d.Agents = append(d.Agents, wire.AgentNeed{Policy: p.Name, Names: p.Agents, Labels: p.AgentLabels})
	}
	if a := p.Approvals; a != nil && a.Count > 0 {
		d.Approvals = append(d.Approvals, wire.ApprovalNeed{Policy: p.Name, Count: a.Count, Groups: a.Groups, TTL: a.TTL})
	}
	if p.Mask != "" && !slices.Contains(d.Masks, p.Mask) {
		d.Masks = append(d.Masks, p.Mask)
	}
}

// stricter returns the smaller of two limits, of which 0 means none.
func stricter[T int64 | time.Duration](a, b T) T {
	if b <= 0 || (a > 0 && a < b) {
		return a
	}
	return b
}
