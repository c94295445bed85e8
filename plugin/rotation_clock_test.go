package plugin

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// How long it is until a rotation is due, whatever the wall clock was set to since it
// was planned: by the process that planned it, by the next one, and after the machine
// was started again.
func TestRotationClock_Left(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	daily := rotationPlan{Schedule: "0 0 * * *", Window: 2 * time.Hour}
	hourly := rotationPlan{Period: time.Hour}
	for name, c := range map[string]struct {
		plan   rotationPlan
		passed time.Duration // since it was planned, at midnight
		set    time.Duration // by how much the wall clock was
		reboot bool
		want   time.Duration
	}{
		"period":                          {plan: hourly, passed: 20 * time.Minute, want: 40 * time.Minute},
		"period, back":                    {plan: hourly, passed: 20 * time.Minute, set: -year, want: 40 * time.Minute},
		"period, back, and it is due":     {plan: hourly, passed: 61 * time.Minute, set: -year, want: -time.Minute},
		"period, a little forward":        {plan: hourly, passed: 20 * time.Minute, set: 10 * time.Minute, want: 30 * time.Minute},
		"period, forward beyond it":       {plan: hourly, passed: 20 * time.Minute, set: year, want: 40*time.Minute - year},
		"period, rebooted":                {plan: hourly, passed: 20 * time.Minute, reboot: true, want: 40 * time.Minute},
		"period, rebooted, back":          {plan: hourly, passed: 20 * time.Minute, set: -year, reboot: true, want: time.Hour},
		"period, rebooted, a little back": {plan: hourly, passed: 20 * time.Minute, set: -10 * time.Minute, reboot: true, want: 50 * time.Minute},
		"schedule":                        {plan: daily, passed: 20 * time.Hour, want: 4 * time.Hour},
		"schedule, inside its window":     {plan: daily, passed: 25 * time.Hour, want: -time.Hour},
		"schedule, missed":                {plan: daily, passed: 27 * time.Hour, want: 21 * time.Hour},
		"schedule, back by seconds":       {plan: daily, passed: 24*time.Hour - 1*time.Second, set: -4 * time.Second, want: 5 * time.Second},
		"schedule, back by an hour":       {plan: daily, passed: 23 * time.Hour, set: -time.Hour, want: 2 * time.Hour},
		"schedule, back by a year":        {plan: daily, passed: 23 * time.Hour, set: -year, want: 3 * time.Hour},
		"schedule, forward":               {plan: daily, passed: 20 * time.Hour, set: 5 * time.Hour, want: -time.Hour},
		"schedule, rebooted, back":        {plan: daily, passed: 20 * time.Hour, set: -year, reboot: true, want: 4 * time.Hour},
		"never":                           {passed: year},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wall, up := start, uptime{Boot: "1", At: time.Hour}
			engine := func() *backend {
				return newBackend(DefaultVersion, func() time.Time { return wall }, func() uptime { return up })
			}
			first := engine()
			r := &staticRole{Name: "r", Rotation: c.plan}
			first.planStaticRole(r)
			wall, up.At = wall.Add(c.passed+c.set), up.At+c.passed
			engines := map[string]*backend{"the same process": first, "the next process": engine()}
			if c.reboot {
				up = uptime{Boot: "2", At: time.Second}
				engines = map[string]*backend{"after a reboot": engine()}
			}
			for which, b := range engines {
				if b.fromLaterClock(&r.Rotation, r.NextRotation, r.Planned) {
					require.True(t, c.reboot, which)
					b.planStaticRole(r)
				}
				left, ever := b.staticRoleLeft(r)
				require.Equal(t, !c.plan.empty(), ever, which)
				require.Equal(t, c.want, left, which)
			}
		})
	}
}

// A connection that is written while its rotation is planned anew, because the clock was
// set back, keeps the new plan: with the old one it would be rotated when the clock is
// where it was.
func TestRotationClock_WrittenWhilePlannedAnew(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		write func(*storedConnection)
		want  time.Duration
	}{
		"something else": {func(s *storedConnection) { s.AllowedRoles = []string{"reader"} }, time.Hour},
		"the period":     {func(s *storedConnection) { s.Rotation.Period = 2 * time.Hour }, 2 * time.Hour},
		"no rotation":    {func(s *storedConnection) { s.DisableRotation = true }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := &logical.InmemStorage{}
			wall, up := start.Add(year), uptime{Boot: "1", At: time.Hour}
			engine := func() *backend {
				return newBackend(DefaultVersion, func() time.Time { return wall }, func() uptime { return up })
			}
			stored := storedConnection{
				ID: "c1", Name: "prod", PluginName: "postgresql-database-plugin", Rotation: rotationPlan{Period: time.Hour},
				Details: map[string]any{"connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/shop", detailUsername: "vault"},
				Secrets: map[string]string{detailPassword: "x"},
			}
			engine().planRoot(&stored)
			require.NoError(t, putStored(t.Context(), storage, prefixConfig+"prod", stored))

			wall, up = start, uptime{Boot: "2", At: time.Second}
			b := engine()
			before, err := b.connections.get(t.Context(), storage, "prod")
			require.NoError(t, err)
			require.True(t, before.NextRootRotation.After(wall.Add(year)))
			written := before.storedConnection
			c.write(&written)
			if written.Rotation != before.Rotation || written.DisableRotation != before.DisableRotation {
				b.planRoot(&written)
			}
			next, err := newConnection(written)
			require.NoError(t, err)
			require.NoError(t, b.replanRoot(t.Context(), storage, "prod"))
			require.NoError(t, b.replaceConnection(t.Context(), storage, before, next))

			now, err := getStored[storedConnection](t.Context(), storage, prefixConfig+"prod")
			require.NoError(t, err)
			require.Equal(t, written.AllowedRoles, now.AllowedRoles)
			left, ever := b.rootLeft(now)
			require.Equal(t, c.want != 0, ever)
			require.Equal(t, c.want, left)
		})
	}
}

// The clock is set back while an engine works, and between two of them on machines of
// their own: rotations keep their period, rotate-all and what a lockdown wants rotated
// are done, and once.
func TestRotationClock_SetBack(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.start()
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"rotation_period": "1h"})
	read := func(m *engine) (role *staticRole, own *connection) {
		t.Helper()
		role, err := m.staticRoles.get(t.Context(), m.storage, "app")
		require.NoError(t, err)
		return role, m.connectionNow("prod")
	}
	last, own := read(m)
	changed := func(m *engine) bool {
		role, connection := read(m)
		return role.Credential != last.Credential && connection.Secrets[detailPassword] != own.Secrets[detailPassword]
	}
	m.clock.step(-24 * time.Hour)
	m.clock.advance(time.Hour + time.Second)
	require.Eventually(t, func() bool { return changed(m) }, 30*time.Second, 20*time.Millisecond)
	last, own = read(m)
	never(t, 300*time.Millisecond, func() bool { return changed(m) })

	// Its last rotation is later than now.
	m.clock.step(-24 * time.Hour)
	m.must(logical.UpdateOperation, "rotate-all/prod", nil)
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	all, _ := read(m)
	require.NotEqual(t, last.Credential, all.Credential)
	require.True(t, works(t, p, "svc", all.Credential.Password))

	// And the other way round: the wish is later than the rotation it gets.
	last = all
	m.must(logical.UpdateOperation, "rotate-all/prod", nil)
	m.clock.step(-24 * time.Hour)
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	all, _ = read(m)
	require.NotEqual(t, last.Credential, all.Credential)
	m.clean(t.Context())

	// Another machine, its clock a year behind, does not wait for a year; nor does it
	// wait anew each time it is started.
	elsewhere := func(passed time.Duration) *engine {
		m := newMount(t, m.storage)
		m.clock.boot = "elsewhere"
		m.clock.step(-365 * 24 * time.Hour)
		m.clock.advance(passed)
		m.began = m.clockPoint()
		m.start()
		return m
	}
	last, own = read(m)
	second := elsewhere(0)
	require.Eventually(t, func() bool {
		role, connection := read(second)
		return role.NextRotation.Sub(second.now()) <= time.Hour && connection.NextRootRotation.Sub(second.now()) <= time.Hour
	}, 30*time.Second, 20*time.Millisecond)
	never(t, 300*time.Millisecond, func() bool { return changed(second) })
	second.clean(t.Context())
	third := elsewhere(40 * time.Minute)
	never(t, 300*time.Millisecond, func() bool { return changed(third) })
	third.clean(t.Context())
	fourth := elsewhere(61 * time.Minute)
	require.Eventually(t, func() bool { return changed(fourth) }, 30*time.Second, 20*time.Millisecond)
}

// The same through a real Vault whose plugin's clock is set while it runs and between
// two processes: no rotation is later than its period and ten seconds, and none comes
// a second time.
func TestVault_RotationsKeepTheirPeriodWhenTheClockIsSet(t *testing.T) {
	t.Parallel()
	const period = 12 * time.Second
	p := database(t)
	p.Exec("postgres", `CREATE ROLE svc LOGIN PASSWORD 'before'`, `GRANT svc TO dbops_root WITH ADMIN OPTION`)
	v := testenv.Vault(t, testenv.VaultOptions{Raft: true, PluginBinary: testenv.FaultPlugin(t)})
	d := &vaultDesk{t: t, v: v}
	d.put(v.Client, "dbops/config/prod", "plugin_name", postgresPluginName, "connection_url", p.ConnectionURL("postgres"),
		"username", "dbops_root", "password", rootPassword, "allowed_roles", "*")
	d.put(v.Client, "dbops/static-roles/app", "db_name", "prod", "username", "svc", "rotation_period", int(period.Seconds()))
	last := time.Now()
	password := func() string { return d.get(v.Client, "dbops/static-creds/app")["password"].(string) }
	known := password()
	// next waits for a rotation and returns how long after the one before it came.
	next := func(limit time.Duration) time.Duration {
		t.Helper()
		require.Eventually(t, func() bool { return password() != known }, time.Until(last.Add(limit)), 50*time.Millisecond)
		took := time.Since(last)
		known, last = password(), time.Now()
		require.True(t, works(t, p, "svc", known))
		return took
	}
	const slack = 4 * time.Second // when a rotation is done is known by looking
	inTime := func(what string) {
		t.Helper()
		took := next(period + lateness)
		t.Logf("%s: after %v of %v", what, took.Round(time.Millisecond), period)
		require.Greater(t, took, period-slack, what)
	}
	d.setClock(-1000 * time.Hour)
	inTime("back, between two processes")
	inTime("after that")
	setClock(t, v, -3000*time.Hour)
	inTime("back, while it runs")
	inTime("after that")

	// Forward it is rotated early, once: the machine may have slept.
	setClock(t, v, 1000*time.Hour)
	next(period + lateness)
	inTime("forward, while it runs")
	d.setClock(3000 * time.Hour)
	next(period + lateness)
	inTime("forward, between two processes")
	setClock(t, v, 0)
	inTime("set right")
	var rotation map[string]any
	content, err := json.Marshal(d.get(v.Client, "dbops/static-creds/app"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(content, &rotation))
	require.InDelta(t, period.Seconds(), rotation["ttl"], slack.Seconds())
}
