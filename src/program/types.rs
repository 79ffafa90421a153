//! What a component declares against what the host has: value types compared, resources named.
//!
//! Owns: the map from a component's resource types to our interfaces. Never: a conversion; the declared type, which
//! may be huge, is only ever walked along ours.

use crate::host::shape::{Shape, Signature};
use crate::host::{self, Interface, function::HostResource};
use std::collections::HashMap;
use wasmparser::PrimitiveValType;
use wasmparser::component_types::{
    ComponentAnyTypeId, ComponentDefinedType, ComponentEntityType, ComponentFuncTypeId,
    ComponentInstanceTypeId, ComponentValType, ResourceId,
};
use wasmparser::types::TypesRef;

/// The resource types that a component imports, by their identity in the validator.
#[derive(Default)]
pub struct Resources {
    known: HashMap<ResourceId, &'static HostResource>,
}

/// What is wrong with the imports of a component.
#[derive(Default)]
pub struct Complaints {
    pub unknown: Vec<String>,
    pub other_types: Vec<String>,
}

impl Resources {
    pub fn of(&self, types: &TypesRef<'_>, index: u32) -> Option<&'static HostResource> {
        match types.component_any_type_at(index) {
            ComponentAnyTypeId::Resource(id) => self.known.get(&id.resource()).copied(),
            _ => None,
        }
    }

    /// Compares one imported interface, function by function, and learns its resources.
    pub fn import(
        &mut self,
        name: &str,
        id: ComponentInstanceTypeId,
        types: &TypesRef<'_>,
        complaints: &mut Complaints,
    ) {
        let declared = &types[id];
        let Some(interface) = host::interface(name) else {
            let inert = declared.exports.values().all(|entity| match entity {
                ComponentEntityType::Type { created, .. } => {
                    !matches!(created, ComponentAnyTypeId::Resource(_))
                }
                _ => false,
            });
            // An interface that only names records and the like asks nothing of the host.
            if !inert {
                complaints.unknown.push(name.to_owned());
            }
            return;
        };
        // Resources first: functions are compared by them.
        for (export, entity) in declared.exports.iter() {
            if let ComponentEntityType::Type { created: ComponentAnyTypeId::Resource(resource), .. } = entity
            {
                let resource = resource.resource();
                // One that the interface `use`s was learnt from the interface that defines it.
                match interface.resource_named(export) {
                    Some(ours) => drop(self.known.entry(resource).or_insert(ours)),
                    None if self.known.contains_key(&resource) => {}
                    None => complaints.unknown.push(format!("{name}#{export}")),
                }
            }
        }
        for (export, entity) in declared.exports.iter() {
            match entity {
                ComponentEntityType::Func(id) => {
                    self.function(name, interface, export, *id, types, complaints)
                }
                ComponentEntityType::Type { .. } => {}
                _ => complaints.unknown.push(format!("{name}#{export}")),
            }
        }
    }

    fn function(
        &self,
        name: &str,
        interface: &'static Interface,
        export: &str,
        id: ComponentFuncTypeId,
        types: &TypesRef<'_>,
        complaints: &mut Complaints,
    ) {
        match interface.function(export) {
            None => complaints.unknown.push(format!("{name}#{export}")),
            Some(ours) if !self.same(&ours.signature, id, types) => {
                complaints.other_types.push(format!("{name}#{export} is {} here", ours.signature));
            }
            Some(_) => {}
        }
    }

    /// Whether a declared function has exactly this signature.
    pub fn same(&self, ours: &Signature, declared: ComponentFuncTypeId, types: &TypesRef<'_>) -> bool {
        let declared = &types[declared];
        let parameters = declared.params.iter().map(|(_, ty)| *ty);
        self.all(&ours.parameters, parameters, types)
            && self.side(ours.result.as_ref(), declared.result, types)
    }

    fn all(
        &self,
        ours: &[Shape],
        declared: impl ExactSizeIterator<Item = ComponentValType>,
        types: &TypesRef<'_>,
    ) -> bool {
        ours.len() == declared.len()
            && ours.iter().zip(declared).all(|(shape, ty)| self.matches(shape, ty, types))
    }

    fn side(&self, ours: Option<&Shape>, declared: Option<ComponentValType>, types: &TypesRef<'_>) -> bool {
        match (ours, declared) {
            (None, None) => true,
            (Some(shape), Some(ty)) => self.matches(shape, ty, types),
            _ => false,
        }
    }

    fn matches(&self, shape: &Shape, declared: ComponentValType, types: &TypesRef<'_>) -> bool {
        let defined = match declared {
            ComponentValType::Primitive(primitive) => {
                return primitive_shape(primitive).as_ref() == Some(shape);
            }
            ComponentValType::Type(id) => &types[id],
        };
        let is =
            |ours: &str, id: ResourceId| self.known.get(&id).is_some_and(|resource| resource.name == ours);
        match (shape, defined) {
            (_, ComponentDefinedType::Primitive(primitive)) => {
                primitive_shape(*primitive).as_ref() == Some(shape)
            }
            (Shape::List(of), ComponentDefinedType::List(ty)) => self.matches(of, *ty, types),
            (Shape::Option(of), ComponentDefinedType::Option(ty)) => self.matches(of, *ty, types),
            (Shape::Result(ours_ok, ours_err), ComponentDefinedType::Result { ok, err }) => {
                self.side(ours_ok.as_deref(), *ok, types) && self.side(ours_err.as_deref(), *err, types)
            }
            (Shape::Tuple(ours), ComponentDefinedType::Tuple(tuple)) => {
                self.all(ours, tuple.types.iter().copied(), types)
            }
            (Shape::Tuple(ours), ComponentDefinedType::Record(record)) => {
                self.all(ours, record.fields.values().copied(), types)
            }
            (Shape::Variant(ours), ComponentDefinedType::Variant(variant)) => {
                let cases = variant.cases.values();
                ours.len() == cases.len()
                    && ours.iter().zip(cases).all(|(shape, case)| self.side(shape.as_ref(), case.ty, types))
            }
            (Shape::Enum(ours), ComponentDefinedType::Enum(cases)) => *ours == cases.len(),
            (Shape::Flags(ours), ComponentDefinedType::Flags(flags)) => *ours == flags.len(),
            (Shape::Own(ours), ComponentDefinedType::Own(id)) => is(ours, id.resource()),
            (Shape::Borrow(ours), ComponentDefinedType::Borrow(id)) => is(ours, id.resource()),
            _ => false,
        }
    }
}

fn primitive_shape(primitive: PrimitiveValType) -> Option<Shape> {
    Some(match primitive {
        PrimitiveValType::Bool => Shape::Bool,
        PrimitiveValType::S8 => Shape::S8,
        PrimitiveValType::U8 => Shape::U8,
        PrimitiveValType::S16 => Shape::S16,
        PrimitiveValType::U16 => Shape::U16,
        PrimitiveValType::S32 => Shape::S32,
        PrimitiveValType::U32 => Shape::U32,
        PrimitiveValType::S64 => Shape::S64,
        PrimitiveValType::U64 => Shape::U64,
        PrimitiveValType::F32 => Shape::F32,
        PrimitiveValType::F64 => Shape::F64,
        PrimitiveValType::Char => Shape::Char,
        PrimitiveValType::String => Shape::String,
        PrimitiveValType::ErrorContext => return None,
    })
}
