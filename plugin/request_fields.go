package plugin

import (
	"maps"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// fieldOf returns a field of a request, or its default. The schema makes it a T.
func fieldOf[T any](d *framework.FieldData, name string) T {
	value, _ := d.Get(name).(T)
	return value
}

// fieldGiven returns a field when the request has it.
func fieldGiven[T any](d *framework.FieldData, name string) (T, bool) {
	value, given := d.GetOk(name)
	typed, ok := value.(T)
	return typed, given && ok
}

// longestDuration is the most that a duration in a request may be. Far longer ones
// can be counted, but come out negative where something is added to them: what is
// meant as no limit would be over at once.
const longestDuration = 100 * 365 * 24 * time.Hour

// durationGiven returns a duration, in whole seconds, when the request has it. One that
// is above [longestDuration] is refused, and so is one that would be cut to 0, which
// has a meaning of its own nearly everywhere.
func durationGiven(d *framework.FieldData, name string) (value time.Duration, given bool, err error) {
	seconds, given := fieldGiven[int](d, name)
	if !given {
		return 0, false, nil
	}
	value, err = durationOf(d, name, seconds)
	return value, true, err
}

// durationOf is [durationGiven] for a field that has the value seconds, given or not.
func durationOf(d *framework.FieldData, name string, seconds int) (time.Duration, error) {
	if int64(seconds) > int64(longestDuration/time.Second) || seconds < 0 {
		return 0, notDuration(name)
	}
	if seconds == 0 && fraction(d.Raw[name]) {
		return 0, invalidField(name, "is less than a second, which is the shortest that is counted")
	}
	return time.Duration(seconds) * time.Second, nil
}

// fraction reports whether the framework has made 0 of something that is not 0.
func fraction(raw any) bool {
	if number, ok := raw.(float64); ok {
		return number != 0
	}
	exact, err := parseutil.ParseDurationSecond(raw)
	return err == nil && exact != 0
}

func notDuration(name string) *wire.Error {
	return invalidField(name, "is not a duration from 0 to %d seconds (%s), given in seconds or like 90m", int64(longestDuration/time.Second), longestDuration)
}

// clearMaps takes the empty text for an empty map where a field is one, as the
// framework does for lists: "labels=" is how the vault command clears a field.
func (b *backend) clearMaps(req *logical.Request) {
	var path *framework.Path
	copied := false
	for name, value := range req.Data {
		if value != "" {
			continue
		}
		if path == nil {
			if path = b.Route(req.Path); path == nil {
				return
			}
		}
		if schema := path.Fields[name]; schema == nil || schema.Type != framework.TypeKVPairs {
			continue
		}
		if !copied {
			req.Data, copied = maps.Clone(req.Data), true
		}
		req.Data[name] = map[string]any{}
	}
}
