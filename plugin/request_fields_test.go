package plugin

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// No duration that somebody writes wraps round or is cut to 0, which is no limit, the
// default or for ever: it is refused by name, with the most that is allowed. The table
// has every field of the kind that there is.
func TestDurations_OutOfBounds(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "config/pg", "plugin_name", "postgresql-database-plugin", "verify_connection", false, "allowed_roles", "*",
		"connection_url", "postgresql://{{username}}:{{password}}@127.0.0.1:1/shop", "username", "vault", "password", "secret"))
	m.must(m.write("", "roles/r", "db_name", "pg", "creation_statements", "CREATE ROLE \"{{name}}\""))
	requests := []struct {
		op     logical.Operation
		path   string
		fields []string
		with   []any
	}{
		{logical.UpdateOperation, "policies/dev", []string{"max_duration", "clone_ttl", "approvals_ttl"}, nil},
		{logical.UpdateOperation, "settings", []string{"retention"}, nil},
		{logical.UpdateOperation, "roles/r", []string{"default_ttl", "max_ttl"}, nil},
		{logical.CreateOperation, "static-roles/s", []string{"rotation_period", "rotation_window"}, []any{"db_name", "pg", "username", "app"}},
		{logical.UpdateOperation, "config/pg", []string{"rotation_period", "rotation_window"}, nil},
		{logical.ReadOperation, "creds/r", []string{"ttl"}, nil},
		{logical.UpdateOperation, "agents/a1", []string{"grace"}, nil},
		{logical.ReadOperation, "posture", []string{"max_age"}, nil},
		{logical.ReadOperation, "posture/pg", []string{"max_age"}, nil},
		{logical.UpdateOperation, "lockdown/break-glass", []string{"after"}, nil},
	}
	known := map[string]bool{}
	for _, r := range requests {
		path := m.b.Route(r.path)
		require.NotNil(t, path, r.path)
		for _, field := range r.fields {
			require.Contains(t, path.Fields, field, r.path)
			known[path.Pattern+" "+field] = true
			for _, value := range []any{
				float64(1 << 55), "36028797018963968", "-36028797018963968", float64(1<<63) * 4, int64(math.MaxInt64 / time.Second),
				int64(longestDuration/time.Second) + 1, "876001h", "36501d", "-1",
			} {
				resp, err := m.handle(bob, r.op, r.path, append([]any{field, value}, r.with...)...)
				refusal := m.refused(wire.CodeInvalid, resp, err)
				require.Equal(t, field, refusal.Field, "%s %v: %v", r.path, value, refusal)
				require.Contains(t, refusal.Reason, "3153600000 seconds (876000h0m0s)", "%s %v", r.path, value)
			}
			for _, value := range []any{"500ms", "1ns", 0.5} {
				resp, err := m.handle(bob, r.op, r.path, append([]any{field, value}, r.with...)...)
				refusal := m.refused(wire.CodeInvalid, resp, err)
				require.Equal(t, field, refusal.Field, "%s %v: %v", r.path, value, refusal)
				require.Contains(t, refusal.Reason, "less than a second", "%s %v", r.path, value)
			}
		}
	}
	for _, path := range m.b.Paths {
		for name, schema := range path.Fields {
			if schema.Type == framework.TypeDurationSecond || schema.Type == framework.TypeSignedDurationSecond {
				require.True(t, known[path.Pattern+" "+name], "%s of %s is not in the table", name, path.Pattern)
			}
		}
	}

	for _, value := range []any{int64(longestDuration / time.Second), "876000h", "36500d"} {
		m.must(m.write("", "policies/dev", "max_duration", value))
		require.EqualValues(t, longestDuration/time.Second, m.must(m.read("", "policies/dev"))["max_duration"], fmt.Sprint(value))
	}
	id, fence := m.running()
	m.clock.pass(5 * time.Hour)
	m.poll("a1", id+":"+fence)
	m.settle()
	require.Equal(t, wire.StateRunning, m.operation(id).State, "the longest is not over at once")
	// An earlier version stored what it was given.
	old := operationRecord{Operation: wire.Operation{Decision: wire.Decision{MaxDuration: math.MaxInt64}}}
	require.Positive(t, old.maxDuration()+deadlineSlack)
}

// Whatever JSON a duration is, it is refused, or in bounds and 0 only where it says so.
func FuzzDuration(f *testing.F) {
	for _, value := range []string{
		`0`, `"0s"`, `1`, `3153600000`, `3153600001`, `36028797018963968`, `1e30`, `-1`, `0.5`, `"1ns"`, `"90m"`, `"36500d"`, `"106751991167d"`, `null`, `""`, `[]`, `true`,
	} {
		f.Add(value)
	}
	schema := map[string]*framework.FieldSchema{"d": {Type: framework.TypeDurationSecond}}
	f.Fuzz(func(t *testing.T, value string) {
		data := requestBody(t, `{"d":`+value+`}`, schema, nil)
		if data == nil {
			return
		}
		got, given, err := durationGiven(data, "d")
		if err != nil {
			requireRefusal(t, err)
			return
		}
		require.True(t, got >= 0 && got <= longestDuration && got%time.Second == 0, "%s", got)
		if given && got == 0 {
			require.False(t, fraction(data.Raw["d"]), "%v", data.Raw["d"])
		}
	})
}
