//! Recipes for the scripted model, a source, and a request.

use std::sync::{Arc, OnceLock};

use silo_core::{
    ContentHash, KeySite, LanguageModel, OptOut, OptOutAction, OptOutEvent, OptOutRequest, OptOutSelection,
    OptOutState, Permissions, ReasonCode, Source, Tier,
};
use silo_store::{Bm25, Ivf, KeyType, Recipe, quantizer_about};
use silo_testkit::ScriptedModel;
use silo_vector::{Quantizer, Training, train_quantizer};

pub fn recipe() -> Recipe {
    Recipe {
        name: "test".into(),
        key_site: KeySite::default(),
        key_type: KeyType::F32,
        window_tokens: 16,
        stride_tokens: 8,
        passage_tokens: 12,
        passage_stride_tokens: 6,
        bm25: Bm25::default(),
        ivf: None,
    }
}

/// The same with inverted lists, of which few are looked into.
pub fn inverted() -> Recipe {
    static QUANTIZER: OnceLock<Arc<Quantizer>> = OnceLock::new();
    let quantizer = QUANTIZER.get_or_init(|| {
        let keys: Vec<f32> = (0..400u32).flat_map(|i| ScriptedModel::key(i * 7 % 250, i * 13 % 250)).collect();
        let about = quantizer_about(ScriptedModel::new(64).card()).into();
        let training = Training { projected: 5, n_lists: 16, seed: 1, about };
        Arc::new(train_quantizer(&keys, ScriptedModel::KEY_DIM, training).unwrap())
    });
    let quantizer_sha256 = ContentHash::of(&quantizer.to_bytes().unwrap());
    let ivf = Ivf { quantizer_sha256, n_probe: 2, rerank: 24, quantizer: Some(quantizer.clone()) };
    Recipe { name: "inverted".into(), ivf: Some(ivf), ..recipe() }
}

pub fn recipe_of(lists: bool) -> Recipe {
    if lists { inverted() } else { recipe() }
}

pub fn source(id: &str) -> Source {
    Source {
        id: id.parse().unwrap(),
        owner: format!("owner of {id}"),
        licence: "LicenseRef-test".into(),
        licence_stated_at: "here".into(),
        notice: String::new(),
        tier: Tier::Restricted,
        permissions: Permissions::of_tier(Tier::Restricted),
    }
}

/// A step of a request.
pub fn event(action: OptOutAction, becomes: OptOutState) -> OptOutEvent {
    let (actor, reason, note) = ("test".into(), ReasonCode::Other, String::new());
    OptOutEvent { at_unix_ms: 0, actor, action, becomes, reason, note }
}

/// A request that holds a text, as it is submitted.
pub fn request(text: &str) -> OptOut {
    let request = OptOutRequest {
        selection: OptOutSelection::Passage { text: Some(text.into()), sha256: ContentHash::of(text.as_bytes()) },
        claimant: "somebody".into(),
        contact: "there".into(),
        matches: Vec::new(),
        spared: Vec::new(),
        decide_by_unix_ms: 0,
        restore_from_unix_ms: None,
        appeal_until_unix_ms: None,
    };
    let (state, events) = (OptOutState::Quarantined, vec![event(OptOutAction::Submit, OptOutState::Quarantined)]);
    OptOut { id: 0, state, legal_hold: false, hold: None, removal: None, request, events }
}
