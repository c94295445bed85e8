package plugin

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// as asks for a login in the name of an identity.
func (m *engine) as(entity, path string) (*logical.Response, error) {
	return m.HandleRequest(m.t.Context(), &logical.Request{
		Operation: logical.ReadOperation, Path: path, Storage: m.storage, DisplayName: "token-" + entity, EntityID: entity,
	})
}

// Sixteen requests at once get exactly as many logins as the limit allows; one
// that ends makes room for one.
func TestCaps_ExactUnderParallelRequests(t *testing.T) {
	t.Parallel()
	p := database(t)
	for name, where := range map[string]string{"role": "roles/app", "connection": "config/prod"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := withRole(t, p, nil)
			m.must(logical.UpdateOperation, where, map[string]any{capLeases: 5})
			var made atomic.Int32
			var one atomic.Pointer[logical.Response]
			var group sync.WaitGroup
			for range 16 {
				group.Go(func() {
					response, err := m.request(logical.ReadOperation, "creds/app", nil)
					if err == nil {
						made.Add(1)
						one.Store(response)
					}
				})
			}
			group.Wait()
			require.EqualValues(t, 5, made.Load())
			refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
			require.Equal(t, 429, status)
			require.Equal(t, wire.CodeRateLimited, refusal.Code)
			require.Equal(t, capLeases, refusal.Rule)
			require.Contains(t, refusal.Reason, name)
			require.WithinDuration(t, m.now().Add(10*time.Minute), refusal.RetryAt, 10*time.Second)
			_, err := m.revoke(one.Load().Secret)
			require.NoError(t, err)
			m.must(logical.ReadOperation, "creds/app", nil)
			_, status = m.refused(logical.ReadOperation, "creds/app", nil)
			require.Equal(t, 429, status)
		})
	}
}

// A window of a minute slides, ended logins count in it, and the header is there
// only when waiting is short.
func TestCaps_PerMinute(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{capPerMinute: 2})
	for range 2 {
		response := m.must(logical.ReadOperation, "creds/app", nil)
		_, err := m.revoke(response.Secret)
		require.NoError(t, err)
	}
	response, err := m.request(logical.ReadOperation, "creds/app", nil)
	require.ErrorContains(t, err, `rule="max_per_minute"`)
	require.Nil(t, response, "too far away for Retry-After")
	m.clock.advance(53 * time.Second)
	response, err = m.request(logical.ReadOperation, "creds/app", nil)
	require.ErrorContains(t, err, string(wire.CodeRateLimited))
	require.NotNil(t, response)
	require.Regexp(t, `^[5-7]$`, response.Headers["Retry-After"][0])
	m.clock.advance(8 * time.Second)
	m.must(logical.ReadOperation, "creds/app", nil)
}

// Each identity has its own count; tokens without one share theirs.
func TestCaps_PerEntity(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{capLeasesPerEntity: 1, capLeases: 3})
	for _, entity := range []string{"entity-a", "entity-b", ""} {
		_, err := m.as(entity, "creds/app")
		require.NoError(t, err)
		_, err = m.as(entity, "creds/app")
		require.ErrorContains(t, err, string(wire.CodeRateLimited), entity)
		require.ErrorContains(t, err, `rule="max_leases`, entity)
	}
	_, err := m.as("entity-c", "creds/app")
	require.ErrorContains(t, err, `rule="max_leases"`)
	_, err = m.issueAccount(t.Context(), m.storage, accountRequest{Connection: "prod", Role: "app", OperationID: "op"})
	require.NoError(t, err, "operations have limits of their own")
}

// A new instance counts what the one before has left, before it answers.
func TestCaps_CountedAgainAfterAStart(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{capLeases: 2, capPerMinute: 10, capPerMinutePerEntity: 2})
	var last *logical.Response
	for range 2 {
		last = m.must(logical.ReadOperation, "creds/app", nil)
	}
	second := newMount(t, m.storage)
	refusal, status := second.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 429, status)
	require.Equal(t, capLeases, refusal.Rule)
	_, err := second.revoke(last.Secret)
	require.NoError(t, err)
	second.must(logical.UpdateOperation, "roles/app", map[string]any{capPerMinutePerEntity: 1})
	refusal, _ = second.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, capPerMinutePerEntity, refusal.Rule)
	second.clock.advance(time.Minute)
	second.must(logical.ReadOperation, "creds/app", nil)
}

// A login that was surely not made takes no place.
func TestCaps_FailedCreationsTakeNoPlace(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{capLeases: 1, "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' IN ROLE no_such_role`})
	for range 3 {
		refusal, _ := m.refused(logical.ReadOperation, "creds/app", nil)
		require.Equal(t, wire.CodeEngine, refusal.Code)
	}
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"creation_statements": createLogin})
	m.must(logical.ReadOperation, "creds/app", nil)
}

func TestCaps_ReadBackAndChecked(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": someURL, capLeases: 7})
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", capPerMinute: 3})
	require.Equal(t, 7, m.must(logical.ReadOperation, "config/prod", nil).Data[capLeases])
	role := m.must(logical.ReadOperation, "roles/app", nil).Data
	require.Equal(t, 3, role[capPerMinute])
	require.NotContains(t, role, capLeases, "limits that are not set are not shown")
	m.must(logical.UpdateOperation, "roles/app", map[string]any{capPerMinute: 0})
	require.NotContains(t, m.must(logical.ReadOperation, "roles/app", nil).Data, capPerMinute)
	for _, path := range []string{"roles/app", "config/prod"} {
		refusal, status := m.refused(logical.UpdateOperation, path, map[string]any{capLeasesPerEntity: -1})
		require.Equal(t, 400, status)
		require.Equal(t, capLeasesPerEntity, refusal.Field)
	}
}

// What nothing counts in any more leaves memory.
func TestCapCounts_Forget(t *testing.T) {
	t.Parallel()
	now := time.Now()
	counts := make(capCounts)
	record := &accountRecord{Connection: "prod", Role: "app", EntityID: "e", CreatedAt: now}
	counts.add(record, now)
	require.Len(t, counts, 4)
	counts.remove(capScopes(record))
	counts.forget(now.Add(capWindow - 1))
	require.Len(t, counts, 4)
	counts.forget(now.Add(capWindow))
	require.Empty(t, counts)
}
