package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
	"github.com/stretchr/testify/require"
)

func hours(t *testing.T, zone string, windows ...string) *policy.Hours {
	t.Helper()
	h, err := policy.ParseHours(windows, zone)
	require.NoError(t, err)
	return h
}

// Windows are read off the wall clock of their zone: begin included, end not,
// across midnight they belong to the day they begin on, and hours that a clock
// shows twice or never are taken as they are shown.
func TestHours_Contain(t *testing.T) {
	t.Parallel()
	const berlin = "Europe/Berlin"
	for _, c := range []struct {
		zone, window, at string
		in               bool
	}{
		{"", "08:00-18:00", "2026-11-24T08:00:00Z", true},
		{"", "08:00-18:00", "2026-11-24T07:59:59Z", false},
		{"", "08:00-18:00", "2026-11-24T17:59:59Z", true},
		{"", "08:00-18:00", "2026-11-24T18:00:00Z", false},
		{"", "00:00-24:00", "2026-11-24T23:59:59Z", true},
		{"", "MON-fri 08:00-18:00", "2026-11-27T12:00:00Z", true}, // a Friday
		{"", "mon-fri 08:00-18:00", "2026-11-28T12:00:00Z", false},
		{"", "fri-mon 08:00-18:00", "2026-11-29T12:00:00Z", true}, // over the end of the week
		{"", "fri-mon 08:00-18:00", "2026-12-01T12:00:00Z", false},
		{"", "sat 22:00-06:00", "2026-11-28T23:00:00Z", true},
		{"", "sat 22:00-06:00", "2026-11-29T05:59:00Z", true}, // still Saturday's
		{"", "sat 22:00-06:00", "2026-11-29T06:00:00Z", false},
		{"", "sat 22:00-06:00", "2026-11-28T05:00:00Z", false}, // Friday's night
		{"", "sun 22:00-06:00", "2026-11-30T01:00:00Z", true},
		{berlin, "mon-fri 08:00-18:00", "2026-11-24T07:30:00Z", true}, // 08:30 in winter
		{berlin, "mon-fri 08:00-18:00", "2026-07-21T06:30:00Z", true}, // 08:30 in summer
		{berlin, "mon-fri 08:00-18:00", "2026-11-24T06:30:00Z", false},
		{berlin, "mon 00:00-01:00", "2026-11-29T23:30:00Z", true}, // Monday there, Sunday in UTC
		{"Asia/Kolkata", "09:00-17:00", "2026-11-24T03:30:00Z", true},
		// Clocks go from 02:00 to 03:00 on 2026-03-29.
		{berlin, "sun 01:00-02:30", "2026-03-29T00:59:00Z", true}, // 01:59
		{berlin, "sun 01:00-02:30", "2026-03-29T01:00:00Z", false},
		{berlin, "sun 02:00-04:00", "2026-03-29T01:00:00Z", true}, // 03:00, an hour late
		{berlin, "sat 22:00-06:00", "2026-03-29T03:59:00Z", true}, // 05:59
		// Clocks go from 03:00 back to 02:00 on 2026-10-25: 02:30 comes twice.
		{berlin, "sun 02:00-03:00", "2026-10-25T00:30:00Z", true},
		{berlin, "sun 02:00-03:00", "2026-10-25T01:30:00Z", true},
		{berlin, "sun 02:00-03:00", "2026-10-25T02:00:00Z", false},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		require.NoError(t, err)
		require.Equal(t, c.in, hours(t, c.zone, c.window).Contain(at), "%s %s %s", c.zone, c.window, c.at)
	}
}

// What cannot be read is refused with the reason, not guessed at.
func TestParseHours_Errors(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "8-18", "08:00", "mon", "mon 08:00", "mond 08:00-18:00", "mon-xyz 08:00-18:00", "mon tue 08:00-18:00", "08:00-08:00", "24:00-06:00", "08:00-24:01", "08:00-18:00-20:00", "-08:00-18:00"} {
		_, err := policy.ParseHours([]string{text}, "")
		require.Error(t, err, text)
	}
	for _, zone := range []string{"Local", "Mars/Base", "../etc/passwd"} {
		_, err := policy.ParseHours([]string{"08:00-18:00"}, zone)
		require.Error(t, err, zone)
	}
}

// Next is the first minute that a scan of every minute finds, around changes of
// the clock by an hour and by half an hour too.
func TestHours_NextIsTheFirstMinute(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		zone, from string
		windows    []string
	}{
		{"", "2026-11-24T18:00:00Z", []string{"mon-fri 08:00-18:00"}},
		{"", "2026-11-27T18:00:00Z", []string{"mon-fri 08:00-18:00"}},
		{"", "2026-11-27T18:00:00Z", []string{"mon-fri 08:00-18:00", "sat 22:00-06:00"}},
		{"", "2026-11-24T12:00:30Z", []string{"tue 10:00-12:00"}}, // in a week
		{"Europe/Berlin", "2026-03-28T12:00:00Z", []string{"sun 02:30-02:45", "sun 02:15-04:00"}},
		{"Europe/Berlin", "2026-03-28T12:00:00Z", []string{"sun 02:30-02:45"}}, // left out that day
		{"Europe/Berlin", "2026-10-24T12:00:00Z", []string{"sun 02:30-02:45"}},
		{"Europe/Berlin", "2026-10-25T00:50:00Z", []string{"sun 02:30-02:45"}}, // and again in an hour
		{"Australia/Lord_Howe", "2026-04-04T12:00:00Z", []string{"sun 01:45-01:50"}},
		{"Australia/Lord_Howe", "2026-04-04T14:55:00Z", []string{"sun 01:45-01:50"}},
		{"Australia/Lord_Howe", "2026-10-03T12:00:00Z", []string{"sun 02:10-02:40"}},
		{"America/New_York", "2026-11-01T03:00:00Z", []string{"01:00-01:05"}},
		// Samoa went over the date line and had no Friday 2011-12-30.
		{"Pacific/Apia", "2011-12-30T00:00:00Z", []string{"fri 10:00-11:00", "sat 23:00-24:00"}},
		{"Pacific/Apia", "2011-12-29T23:00:00Z", []string{"fri 10:00-11:00", "sat 00:10-00:20"}},
	} {
		h := hours(t, c.zone, c.windows...)
		from, err := time.Parse(time.RFC3339, c.from)
		require.NoError(t, err)
		require.False(t, h.Contain(from), "%+v", c)
		want := from.Truncate(time.Minute).Add(time.Minute)
		for !h.Contain(want) {
			want = want.Add(time.Minute)
		}
		require.True(t, want.Equal(h.Next(from)), "%+v: want %s, got %s", c, want, h.Next(from))
	}
}

// Operations wait until the hours of all their policies are open at once, or hear
// that this never is.
func TestSet_Opens(t *testing.T) {
	t.Parallel()
	named := func(name, zone string, windows ...string) policy.Policy {
		return policy.Policy{Name: name, AllowedHours: windows, AllowedHoursTimeZone: zone}
	}
	set := policy.Compile([]policy.Policy{
		named("always", ""), named("mornings", "", "08:00-12:00"), named("tuesdays", "", "tue 00:00-24:00"), named("berlin", "Europe/Berlin", "12:00-13:00"),
		named("nights", "", "22:00-06:00"), named("unreadable", "", "whenever"),
	})
	now := time.Date(2026, 11, 25, 11, 30, 0, 0, time.UTC) // Wednesday
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, "2026-11-25T11:30:00Z"},
		{[]string{"always", "mornings", "gone"}, "2026-11-25T11:30:00Z"},
		{[]string{"nights"}, "2026-11-25T22:00:00Z"},
		{[]string{"tuesdays"}, "2026-12-01T00:00:00Z"},
		{[]string{"tuesdays", "mornings"}, "2026-12-01T08:00:00Z"},
		{[]string{"berlin", "tuesdays", "mornings"}, "2026-12-01T11:00:00Z"},
		{[]string{"mornings", "nights"}, ""},
		{[]string{"unreadable"}, ""},
	} {
		at, ok := set.Opens(c.names, now)
		require.Equal(t, c.want != "", ok, "%v", c.names)
		if ok {
			require.Equal(t, c.want, at.UTC().Format(time.RFC3339), "%v", c.names)
		}
	}
}

// Hours that nobody can read any more never open: that is told also where a limit is
// reached that time lifts, in the same policy or in another one.
func TestEvaluate_UnreadableHoursBesideARate(t *testing.T) {
	t.Parallel()
	unreadable, limited, both := base(), base(), base()
	unreadable.AllowedHours, unreadable.MaxOperationsPerHour = []string{"whenever"}, 0
	limited.Name = "all"
	both.AllowedHours = unreadable.AllowedHours
	request := ask()
	request.History.Entity = minutesAgo(1, 2, 3, 4, 5)
	require.Equal(t, policy.RuleMaxOperationsPerHour, policy.Evaluate([]policy.Policy{limited}, request, noon).Rule)
	for _, policies := range [][]policy.Policy{{both}, {unreadable, limited}} {
		d := policy.Evaluate(policies, request, noon)
		require.Equal(t, []any{"developers", policy.RuleAllowedHours, wire.CodeDenied}, []any{d.Policy, d.Rule, d.Code})
		require.Zero(t, d.RetryAt)
	}
	// Readable ones that are closed wait like the rate does.
	unreadable.AllowedHours = []string{"13:00-14:00"}
	require.NotZero(t, policy.Evaluate([]policy.Policy{unreadable, limited}, request, noon).RetryAt)
}

// Hours that miss one another each minute are found out soon: the plugin looks for
// every operation that waits, again and again.
func TestSet_OpensSoon(t *testing.T) {
	t.Parallel()
	var even, odd []string
	for minute := 0; minute < 24*60; minute += 2 {
		window := func(begin int) string {
			return fmt.Sprintf("%02d:%02d-%02d:%02d", begin/60, begin%60, (begin+1)/60, (begin+1)%60)
		}
		even, odd = append(even, window(minute)), append(odd, window(minute+1))
	}
	set := policy.Compile([]policy.Policy{{Name: "even", AllowedHours: even}, {Name: "odd", AllowedHours: odd}})
	began := time.Now()
	_, ok := set.Opens([]string{"even", "odd"}, time.Date(2026, 11, 25, 11, 30, 0, 0, time.UTC))
	require.False(t, ok)
	require.Less(t, time.Since(began), 5*time.Second*race.Slowdown)
}
