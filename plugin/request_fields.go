package plugin

import (
	"maps"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
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
