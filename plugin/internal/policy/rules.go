package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Names of the rules, as they stand in decisions and as fields of policies.
const (
	RuleRequireAuthentication      = "require_authentication"
	RuleAllowCrossEngineOperations = "allow_cross_engine_operations"
	RuleEnableNetworkIsolation     = "enable_network_isolation"
	RuleAuditOperations            = "audit_operations"
	RuleMaxOperationsPerHour       = "max_operations_per_hour"
	RuleAllowedOperations          = "allowed_operations"
	RuleMaxOperationsPerHourSource = "max_operations_per_hour_source"
	RuleMaxOperationsPerHourTarget = "max_operations_per_hour_target"
	RuleMaxOperationsPerHourMount  = "max_operations_per_hour_mount"
	RuleMaxConcurrent              = "max_concurrent"
	RuleMaxDuration                = "max_duration"
	RuleMaxBytes                   = "max_bytes"
	RuleMaxRows                    = "max_rows"
	RuleAllowedHours               = "allowed_hours"
	RuleRequireTLS                 = "require_tls"
	RuleAllowProtectedTarget       = "allow_protected_target"
	RuleAllowCrossZone             = "allow_cross_zone"
	RuleAgents                     = "agents"    // fields: agents, agent_labels
	RuleApprovals                  = "approvals" // fields: approvals_count, approvals_groups, approvals_ttl
	RuleMask                       = "mask"
	RuleUndecidedColumns           = "undecided_columns"
	RulePreview                    = "preview"
	RuleCloneTTL                   = "clone_ttl"
	RuleLabels                     = "labels"          // every label key that a policy mentions is carried
	RuleDefaultDeny                = "default_deny"    // no policy matches
	RuleSameDatabase               = "same_database"   // decided outside of policies
	RuleServerIdentity             = "server_identity" // decided outside of policies
)

// Names of fields that are not those of a rule.
const (
	FieldPreset               = "preset"
	FieldAllowedHoursTimeZone = "allowed_hours_time_zone"
	FieldAgentLabels          = "agent_labels"
	FieldApprovalsCount       = "approvals_count"
	FieldApprovalsGroups      = "approvals_groups"
	FieldApprovalsTTL         = "approvals_ttl"
)

// facts is a request looked at once for all policies.
type facts struct {
	*Request
	now         time.Time
	crossEngine bool
	crossZone   bool

	// rates are as in rateRules, each once it was asked for, at the time that stands
	// for now in all of them.
	rates   [4][]time.Time
	present time.Time
	times   []time.Time // memory of rates, which is used again

	// face is what the clock of zone shows; policies mostly share one.
	face face
	zone *time.Location
}

func (f *facts) faceIn(zone *time.Location) face {
	if f.zone != zone {
		f.zone, f.face = zone, faceOf(f.now, zone)
	}
	return f.face
}

// rateRules are the hourly limits, in the order of facts.rates.
var rateRules = [4]struct {
	rule  string
	limit func(*Policy) int
	times func(*History) []time.Time
	whose string
}{
	{RuleMaxOperationsPerHour, func(p *Policy) int { return p.MaxOperationsPerHour }, func(h *History) []time.Time { return h.Entity }, "of this entity"},
	{RuleMaxOperationsPerHourSource, func(p *Policy) int { return p.MaxOperationsPerHourSource }, func(h *History) []time.Time { return h.Source }, "from this source"},
	{RuleMaxOperationsPerHourTarget, func(p *Policy) int { return p.MaxOperationsPerHourTarget }, func(h *History) []time.Time { return h.Target }, "into this target"},
	{RuleMaxOperationsPerHourMount, func(p *Policy) int { return p.MaxOperationsPerHourMount }, func(h *History) []time.Time { return h.Mount }, "of this mount"},
}

// volumeRules are the limits on what the source has, by a plan's estimates.
var volumeRules = [2]struct {
	rule  string
	limit func(*compiled) int64
	of    func(*wire.Estimates) int64
	unit  string
}{
	{RuleMaxBytes, func(p *compiled) int64 { return p.MaxBytes }, func(e *wire.Estimates) int64 { return e.Bytes }, "bytes"},
	{RuleMaxRows, func(p *compiled) int64 { return p.MaxRows }, func(e *wire.Estimates) int64 { return e.Rows }, "rows"},
}

// look reads the facts off a request.
func (f *facts) look(r *Request, now time.Time) {
	*f = facts{Request: r, now: now, times: f.times[:0]}
	if len(r.Source) > 0 && len(r.Target) > 0 {
		f.crossEngine = r.Source[0].Engine != r.Target[0].Engine
		_, _, f.crossZone = r.zones()
	}
}

// rate is what counts under a limit of rateRules, in order. When the clock went back,
// the latest known time stands for now in all of them: otherwise setting it back would
// open the windows again.
func (f *facts) rate(which int) []time.Time {
	if f.present.IsZero() {
		present := f.now
		for i := range rateRules {
			for _, t := range rateRules[i].times(f.History) {
				if t.After(present) {
					present = t
				}
			}
		}
		f.present = present
	}
	if f.rates[which] == nil {
		begin := len(f.times)
		f.times = appendRecent(f.times, rateRules[which].times(f.History), f.present)
		f.rates[which] = f.times[begin:]
	}
	return f.rates[which]
}

// zones returns the first names of both sides that are not in one zone. Where
// zones are in use, a name without one is in another zone than any other name.
func (r *Request) zones() (source, target *Connection, cross bool) {
	for i := range r.Source {
		for j := range r.Target {
			s, t := &r.Source[i], &r.Target[j]
			if s.Zone != t.Zone || (r.ZonesInUse && s.Zone == "") {
				return s, t, true
			}
		}
	}
	return nil, nil, false
}

// unencrypted returns the first connection, of the two asked for, that is not
// encrypted, or nil.
func (r *Request) unencrypted() *Connection {
	for _, side := range [2][]Connection{r.Source, r.Target} {
		if len(side) > 0 && !side[0].TLS {
			return &side[0]
		}
	}
	return nil
}

func (r *Request) protected() *Connection {
	for i := range r.Target {
		if r.Target[i].Protected {
			return &r.Target[i]
		}
	}
	return nil
}

// rule is one row of what policies can restrict.
type rule struct {
	name string
	// waits: time alone can lift the refusal, so that it is told only when nothing
	// else is in the way.
	waits bool
	// forGood tells of a rule that waits whether the policy refuses by it whatever the
	// time. Nil: it never does.
	forGood func(*compiled) bool
	// set tells whether the rule, as the policy has it, can refuse anything.
	set func(*compiled) bool
	// live tells whether it can refuse this request, whatever the policy says.
	live func(*facts) bool
	// refuses decides.
	refuses func(*compiled, *facts) bool
	// reads is all that refuses, until and refusal read of a policy that sets the
	// rule, written out: policies that read alike are asked as one. Nil: nothing.
	reads func(*compiled) string
	// limit stands for set and reads of rules that are a number: one above 0 is set,
	// and whatever it refuses, a lower one does too.
	limit func(*compiled) int64
	// level stands for live and refuses of such rules: a limit that it reaches
	// refuses.
	level func(*facts) int64
	// until is when time will have lifted what refuses has decided, zero when that
	// is not known. Nil: it is not.
	until func(*compiled, *facts) time.Time
	// refusal words what refuses has decided, but for until. It is asked only for
	// the refusal that is told.
	refusal func(*compiled, *facts) wire.Decision
	// value and saw are what an explanation tells.
	value func(*compiled) any
	saw   func(*facts) string
}

// ruleTable lists every rule that can refuse, in the order of telling.
var ruleTable = rules()

// refuse is the refusal of a policy, without its name and that of the rule.
func (r *rule) refuse(p *compiled, f *facts) wire.Decision {
	d := r.refusal(p, f)
	d.RetryAt = r.until(p, f)
	return d
}

// ofThose is the rule for some of the policies that set it.
func (r *rule) ofThose(some func(*compiled) bool) *rule {
	part := *r
	part.set = func(p *compiled) bool { return r.set(p) && some(p) }
	return &part
}

func denied(reason string, values ...any) wire.Decision {
	return wire.Decision{Code: wire.CodeDenied, Reason: fmt.Sprintf(reason, values...)}
}

// always is the live of rules that depend on what the policy says.
func always(*facts) bool { return true }

// notCounted is the level of what is not known or was counted before: no limit is
// so low.
const notCounted = -1

// rules makes [ruleTable].
func rules() []*rule {
	all := []*rule{
		{
			name: RuleAllowedOperations, set: func(*compiled) bool { return true }, live: always,
			refuses: func(p *compiled, f *facts) bool { return !p.allowsAny && !slices.Contains(p.allowed, f.Kind) },
			reads: func(p *compiled) string {
				return fmt.Sprintf("%q", slices.Compact(slices.Sorted(slices.Values(p.AllowedOperations))))
			},
			refusal: func(_ *compiled, f *facts) wire.Decision { return denied("operation %s is not allowed", f.Kind) },
			value:   func(p *compiled) any { return p.AllowedOperations },
			saw:     func(f *facts) string { return string(f.Kind) },
		},
		{
			name: RuleAllowCrossEngineOperations, set: func(p *compiled) bool { return !p.AllowCrossEngineOperations },
			live:    func(f *facts) bool { return f.crossEngine },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(_ *compiled, f *facts) wire.Decision {
				return denied("source is %s and target is %s", f.Source[0].Engine, f.Target[0].Engine)
			},
			value: func(p *compiled) any { return p.AllowCrossEngineOperations },
			saw:   func(f *facts) string { return pairOf(f, func(c Connection) string { return string(c.Engine) }) },
		},
		{
			name: RuleEnableNetworkIsolation, set: func(p *compiled) bool { return p.EnableNetworkIsolation },
			live:    func(f *facts) bool { return !f.Isolated },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(*compiled, *facts) wire.Decision {
				return denied("the operation would not run isolated from networks")
			},
			value: func(p *compiled) any { return p.EnableNetworkIsolation },
			saw: func(f *facts) string {
				return either(f.Isolated, "a sandbox without a network", "no isolation")
			},
		},
		{
			name: RuleAuditOperations, set: func(p *compiled) bool { return p.AuditOperations },
			live:    func(f *facts) bool { return !f.Audited },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(*compiled, *facts) wire.Decision {
				return denied("the operation would run where no audit device works")
			},
			value: func(p *compiled) any { return p.AuditOperations },
			saw: func(f *facts) string {
				return either(f.Audited, "only agents that see an audit device get work", "no audit device")
			},
		},
		{
			name: RuleAllowProtectedTarget, set: func(p *compiled) bool { return !p.AllowProtectedTarget },
			live:    func(f *facts) bool { return f.protected() != nil },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(_ *compiled, f *facts) wire.Decision {
				return wire.Decision{Code: wire.CodeProtectedTarget, Reason: fmt.Sprintf("target %s is protected", f.protected().Name)}
			},
			value: func(p *compiled) any { return p.AllowProtectedTarget },
			saw: func(f *facts) string {
				if c := f.protected(); c != nil {
					return c.Name + " is protected"
				}
				return "not protected"
			},
		},
		{
			name: RuleRequireTLS, set: func(p *compiled) bool { return p.RequireTLS },
			live:    func(f *facts) bool { return f.unencrypted() != nil },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(_ *compiled, f *facts) wire.Decision {
				return denied("connection %s is not encrypted", f.unencrypted().Name)
			},
			value: func(p *compiled) any { return p.RequireTLS },
			saw: func(f *facts) string {
				return pairOf(f, func(c Connection) string { return either(c.TLS, "encrypted", "not encrypted") })
			},
		},
		{
			name: RuleAllowCrossZone, set: func(p *compiled) bool { return !p.AllowCrossZone },
			live:    func(f *facts) bool { return f.crossZone },
			refuses: func(*compiled, *facts) bool { return true },
			refusal: func(_ *compiled, f *facts) wire.Decision {
				s, t, _ := f.zones()
				for _, c := range []*Connection{s, t} {
					if c.Zone == "" {
						return denied("connection %s has no zone, and others have", c.Name)
					}
				}
				return denied("connection %s is in zone %s and %s in zone %s", s.Name, s.Zone, t.Name, t.Zone)
			},
			value: func(p *compiled) any { return p.AllowCrossZone },
			saw: func(f *facts) string {
				return pairOf(f, func(c Connection) string { return either(c.Zone != "", c.Zone, "no zone") })
			},
		},
	}
	for _, v := range volumeRules {
		all = append(all, &rule{
			name: v.rule, limit: v.limit,
			level: func(f *facts) int64 {
				if f.Estimates == nil {
					return notCounted
				}
				return v.of(f.Estimates) - 1 // the limit itself is within it
			},
			refusal: func(p *compiled, f *facts) wire.Decision {
				return wire.Decision{
					Code:   wire.CodeLimitExceeded,
					Reason: fmt.Sprintf("the source has about %d %s, more than %d", v.of(f.Estimates), v.unit, v.limit(p)),
				}
			},
			value: func(p *compiled) any { return v.limit(p) },
			saw: func(f *facts) string {
				if f.Estimates == nil {
					return "no plan yet; held when there is one, and while copying"
				}
				return fmt.Sprintf("about %d %s", v.of(f.Estimates), v.unit)
			},
		})
	}
	all = append(all, &rule{
		name: RuleAllowedHours, waits: true, forGood: func(p *compiled) bool { return p.hours == nil }, set: func(p *compiled) bool { return len(p.AllowedHours) > 0 }, live: always,
		// Hours that cannot be read any more contain nothing.
		refuses: func(p *compiled, f *facts) bool { return p.hours == nil || !p.hours.contain(f.faceIn(p.hours.zone)) },
		// The zone first: in this order the clock of each is looked at once.
		reads: func(p *compiled) string { return fmt.Sprintf("%q %q", p.AllowedHoursTimeZone, p.AllowedHours) },
		until: func(p *compiled, f *facts) time.Time {
			if p.hours == nil {
				return time.Time{}
			}
			return p.hours.Next(f.now)
		},
		refusal: func(p *compiled, f *facts) wire.Decision {
			return denied("it is %s, outside of %s %s", p.clock(f.now), strings.Join(p.AllowedHours, ", "), p.zoneName())
		},
		value: func(p *compiled) any {
			if len(p.AllowedHours) == 0 {
				return p.AllowedHours
			}
			return strings.Join(p.AllowedHours, ", ") + " " + p.zoneName()
		},
		saw: func(f *facts) string { return f.now.UTC().Format(time.RFC3339) },
	})
	for i := range rateRules {
		limit, times, whose := rateRules[i].limit, rateRules[i].times, rateRules[i].whose
		all = append(all, &rule{
			name: rateRules[i].rule, waits: true, limit: func(p *compiled) int64 { return int64(limit(&p.Policy)) },
			live: func(f *facts) bool { return f.History != nil },
			// Mostly there is less in all than the limit, and nothing to measure.
			refuses: func(p *compiled, f *facts) bool {
				n := limit(&p.Policy)
				return len(times(f.History)) >= n && len(f.rate(i)) >= n
			},
			// When one more fits under the limit.
			until: func(p *compiled, f *facts) time.Time {
				counted := f.rate(i)
				return counted[len(counted)-limit(&p.Policy)].Add(Window)
			},
			refusal: func(p *compiled, _ *facts) wire.Decision {
				return wire.Decision{
					Code:   wire.CodeRateLimited,
					Reason: strconv.Itoa(limit(&p.Policy)) + " operations " + whose + " in the last hour are the limit",
				}
			},
			value: func(p *compiled) any { return limit(&p.Policy) },
			saw: func(f *facts) string {
				if f.History == nil {
					return "admitted before; not counted again"
				}
				return fmt.Sprintf("%d operations %s in the last hour", len(f.rate(i)), whose)
			},
		})
	}
	all = append(all, &rule{
		name: RuleMaxConcurrent, waits: true, limit: func(p *compiled) int64 { return int64(p.MaxConcurrent) },
		level: func(f *facts) int64 {
			if f.History == nil {
				return notCounted
			}
			return int64(f.History.Unfinished)
		},
		refusal: func(p *compiled, _ *facts) wire.Decision {
			return wire.Decision{
				Code: wire.CodeRateLimited, Reason: fmt.Sprintf("%d unfinished operations of this entity are the limit", p.MaxConcurrent),
			}
		},
		value: func(p *compiled) any { return p.MaxConcurrent },
		saw: func(f *facts) string {
			if f.History == nil {
				return "admitted before; not counted again"
			}
			return fmt.Sprintf("%d unfinished operations of this entity", f.History.Unfinished)
		},
	})
	for _, r := range all {
		if limit := r.limit; limit != nil {
			r.set = func(p *compiled) bool { return limit(p) > 0 }
			r.reads = func(p *compiled) string { return strconv.FormatInt(limit(p), 10) }
		}
		if limit, level := r.limit, r.level; level != nil {
			r.live = func(f *facts) bool { return level(f) > 0 }
			r.refuses = func(p *compiled, f *facts) bool { return level(f) >= limit(p) }
		}
		if r.reads == nil {
			r.reads = func(*compiled) string { return "" }
		}
		if r.until == nil {
			r.until = func(*compiled, *facts) time.Time { return time.Time{} }
		}
	}
	return all
}

func either(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

// pairOf describes both sides in a few words.
func pairOf(f *facts, of func(Connection) string) string {
	var sides []string
	if len(f.Source) > 0 {
		sides = append(sides, "source "+of(f.Source[0]))
	}
	if len(f.Target) > 0 {
		sides = append(sides, "target "+of(f.Target[0]))
	}
	return strings.Join(sides, ", ")
}

// clock is t as the policy's clock shows it.
func (p *compiled) clock(t time.Time) string {
	if p.hours == nil {
		return t.UTC().Format("Mon 15:04 UTC")
	}
	return t.In(p.hours.zone).Format("Mon 15:04")
}

func (p *compiled) zoneName() string {
	return either(p.AllowedHoursTimeZone != "", p.AllowedHoursTimeZone, "UTC")
}
